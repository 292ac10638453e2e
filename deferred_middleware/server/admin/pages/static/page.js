// Makes the pages live, and lets people use the keyboard. Everything works without it.
"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Times relative to now, in the words of web/words.py.
  const units = [[86400, "d"], [3600, "h"], [60, "min"]];
  const relative = (usec) => {
    const seconds = usec / 1e6 - Date.now() / 1000;
    const size = Math.abs(seconds);
    if (size < 1) return "now";
    const [per, unit] = units.find(([per]) => size >= 2 * per) || [1, "s"];
    const text = `${Math.round(size / per).toLocaleString("en")} ${unit}`;
    return seconds > 0 ? `in ${text}` : `${text} ago`;
  };
  const tick = () => {
    for (const time of $$("time[data-usec]")) {
      let text = relative(Number(time.dataset.usec));
      if ("age" in time.dataset) text = text.replace(" ago", "").replace("now", "0 s");
      if (time.textContent !== text) time.textContent = text;
    }
  };
  setInterval(() => document.hidden || tick(), 1000);

  // Parts of the page that change: the page is loaded again, and what differs is replaced.
  const remember = (part) => ({
    checked: new Set($$("input[type=checkbox]:checked", part).map((box) => `${box.name}=${box.value}`)),
    open: new Set($$("details[open][id]", part).map((details) => details.id)),
    focus: part.contains(document.activeElement) ? keyOf(document.activeElement, part) : null,
    scrolls: $$(".scroll", part).map((box) => [box.scrollLeft, box.scrollTop]),
  });
  const keyOf = (element, part) => {
    if (element.id) return (root) => root.querySelector(`[id="${CSS.escape(element.id)}"]`);
    const row = element.closest("[data-key]");
    const key = row && row.dataset.key;
    const scope = row || part;
    const position = $$("a, button, input, select, summary, [tabindex]", scope).indexOf(element);
    return (root) => {
      const found = key ? $(`[data-key="${CSS.escape(key)}"]`, root) : root;
      return found && (position < 0 ? found : $$("a, button, input, select, summary, [tabindex]", found)[position]);
    };
  };
  const restore = (part, kept) => {
    for (const box of $$("input[type=checkbox]", part)) {
      if (kept.checked.has(`${box.name}=${box.value}`)) box.checked = true;
    }
    for (const details of $$("details[id]", part)) if (kept.open.has(details.id)) details.open = true;
    $$(".scroll", part).forEach((box, index) => {
      if (kept.scrolls[index]) [box.scrollLeft, box.scrollTop] = kept.scrolls[index];
    });
    const focus = kept.focus && kept.focus(part);
    if (focus) focus.focus({ preventScroll: true });
  };
  const replace = (fresh) => {
    for (const part of $$("[data-live]")) {
      const other = fresh.getElementById(part.id);
      if (!other || sameText(part, other)) continue;
      const kept = remember(part);
      part.replaceChildren(...[...document.importNode(other, true).childNodes]);
      restore(part, kept);
      prepare(part);
    }
    tick();
    document.dispatchEvent(new Event("replaced"));
  };
  // Compares what the server has sent: times and marks of this script don't count.
  const sent = new WeakMap();
  const withoutTimes = (part) => part.innerHTML.replace(/(<time [^>]*>)[^<]*/g, "$1");
  for (const part of $$("[data-live]")) sent.set(part, withoutTimes(part));
  const sameText = (part, other) => {
    const text = withoutTimes(other);
    const same = sent.get(part) === text;
    sent.set(part, text);
    return same;
  };

  let wait = 0, loading = false, again = false;
  const refresh = () => {
    if (loading || wait) { again = true; return; }
    loading = true;
    again = false;
    const begun = performance.now();
    const request = new XMLHttpRequest();
    request.open("GET", location.href);
    request.responseType = "document";  // parsed without running anything
    request.timeout = 10000;
    request.onloadend = () => {
      loading = false;
      const took = performance.now() - begun;
      if (request.response && request.getResponseHeader("Content-Type").startsWith("text/html")) {
        if (request.status === 200 || request.status === 404) replace(request.response);
        if (request.status === 401) location.reload();
      }
      // A small part of the time is spent on it, and changes show within a second, also from a busy server.
      wait = setTimeout(() => { wait = 0; if (again) refresh(); }, Math.min(700, Math.max(400, 30 * took)));
    };
    request.send();
  };

  const connection = $("#connection");
  const say = (text) => { if (connection && connection.textContent !== text) connection.textContent = text; };
  let events = null, lost = 0;
  const connect = () => {
    if (events || document.hidden || !$("[data-live]")) return;
    events = new EventSource("/live");
    events.onopen = () => { clearTimeout(lost); lost = 0; say(""); };
    events.addEventListener("changed", refresh);
    events.onerror = () => {
      // Each stream ends after a while and begins again; only a longer silence is worth a word.
      if (!lost) lost = setTimeout(() => say("The server does not answer. This page shows what it was told last."), 2500);
      if (events && events.readyState === EventSource.CLOSED) { disconnect(); setTimeout(connect, 2000); }
    };
  };
  const disconnect = () => { if (events) events.close(); events = null; };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { disconnect(); clearTimeout(lost); lost = 0; } else { connect(); refresh(); }
  });
  addEventListener("pagehide", disconnect);
  addEventListener("pageshow", (event) => { if (event.persisted) { connect(); refresh(); } });

  // The keyboard.
  const store = (name, value) => { try { localStorage.setItem(name, value); } catch { /* not allowed: for this page only */ } };
  const stored = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
  const useKeys = $("#use-keys");
  if (useKeys) {
    useKeys.checked = stored("keys") !== "off";
    useKeys.addEventListener("change", () => store("keys", useKeys.checked ? "on" : "off"));
  }
  const rows = () => $$("[data-row]").filter((row) => row.offsetParent !== null);
  const move = (by) => {
    const all = rows();
    if (!all.length) return;
    const now = all.findIndex((row) => row.contains(document.activeElement));
    const next = all[now < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, now + by))];
    const target = $("a[href]", next) || next;
    target.focus();
    next.scrollIntoView({ block: "nearest" });
  };
  const press = (key) => {
    const row = document.activeElement && document.activeElement.closest("[data-row]");
    const button = $(`button[data-press="${key}"]:not([disabled])`, row || document);
    if (button && (row || rows().length === 0)) button.click();
  };
  const showKeyboard = () => { const dialog = $("#keyboard"); if (dialog && !dialog.open) dialog.showModal(); };
  const actions = {
    "/": () => { const field = $("#search"); if (field) { field.focus(); field.select(); } else location.href = "/tasks#search"; },
    j: () => move(1),
    k: () => move(-1),
    r: () => press("r"),
    "?": showKeyboard,
  };
  document.addEventListener("keydown", (event) => {
    const target = event.target;
    const typing = target.closest && target.closest("input:not([type=checkbox], [type=radio]), textarea, select");
    if (event.key === "Escape") {
      if (typing) typing.blur();
      return;
    }
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || $("dialog[open]")) return;
    if (useKeys && !useKeys.checked) return;
    const action = Object.hasOwn(actions, event.key) && actions[event.key];
    if (action) { event.preventDefault(); action(); }
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest("[data-dialog]");
    if (link) { event.preventDefault(); showKeyboard(); }
    const copy = event.target.closest && event.target.closest("[data-copy]");
    if (copy) copyText(copy);
  });

  const copyText = (button) => {
    const source = document.getElementById(button.dataset.copy);
    const label = button.textContent;
    navigator.clipboard.writeText(source.textContent).then(() => "Copied", () => "Not copied").then((text) => {
      button.textContent = text;
      setTimeout(() => { button.textContent = label; }, 1500);
    });
  };
  // What only works with this script is hidden without it.
  const prepare = (root) => { for (const element of $$(".js-only[hidden]", root)) element.hidden = false; };
  document.addEventListener("change", (event) => {
    const all = event.target;
    if (all.matches && all.matches("[data-check-all]")) {
      for (const box of $$(`input[name="${all.dataset.checkAll}"]`)) box.checked = all.checked;
    }
  });

  prepare(document);
  const current = $(".menu [aria-current]");
  if (current) current.scrollIntoView({ block: "nearest", inline: "center" });
  connect();
})();
