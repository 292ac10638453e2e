// Shows the photographs and the progress of their tasks without a reload. It polls often while tasks run, less and
// less often while nothing changes, and not at all while the page is hidden.

const SOONEST_MS = 400;
const SELDOMEST_MS = 6000;
const LONGEST_ANSWER_MS = 15000;
const UPLOADS_AT_ONCE = 3;

const grid = document.getElementById("photos");
const template = document.getElementById("card");
const empty = document.getElementById("empty");
const tally = document.getElementById("tally");
const meter = document.getElementById("meter");
const form = document.getElementById("upload");
const files = document.getElementById("files");
const sending = document.getElementById("sending");
const refused = document.getElementById("refused");
const gone = document.getElementById("gone");
const pages = document.getElementById("pages");

const cards = new Map(); // id -> { element, shown: what the card shows, as JSON }
const deleted = new Set(); // ids that a response already under way may still contain

const STATE_WORDS = {
  queued: () => "Queued",
  working: (photo) => `${done(photo)} of ${photo.pieces.length}`,
  retrying: () => "Retrying",
  failed: () => "Failed",
  complete: () => "Complete",
};

function done(photo) {
  return photo.pieces.filter((piece) => piece.state === "done").length;
}

function pending(photo) {
  return photo.pieces.some(({ state }) => state !== "done" && state !== "failed");
}

function bytes(count) {
  return count < 1e6 ? `${Math.max(1, Math.round(count / 1e3))} kB` : `${(count / 1e6).toFixed(1)} MB`;
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// --- Cards

function newCard(photo) {
  const card = template.content.firstElementChild.cloneNode(true);
  card.querySelector(".name").textContent = photo.filename;
  card.querySelector(".name").title = photo.filename;
  card.querySelector(".facts").textContent =
    `${photo.width} × ${photo.height} · ${bytes(photo.bytes)}`;
  const remove = card.querySelector(".delete");
  remove.setAttribute("aria-label", `Delete ${photo.filename}`);
  remove.title = "Delete";
  remove.addEventListener("click", () => deletePhoto(photo));
  return card;
}

function showPicture(card, photo) {
  const link = card.querySelector(".picture");
  const image = link.querySelector("img");
  const ready = photo.pieces.filter((piece) => piece.url);
  if (!ready.length) return;
  const largest = ready[ready.length - 1];
  image.srcset = ready
    .filter((piece, index) => index === 0 || piece.width > ready[index - 1].width)
    .map((piece) => `${piece.url} ${piece.width}w`)
    .join(", ");
  image.sizes = "(max-width: 620px) 100vw, 320px";
  image.src = (ready.find((piece) => piece.name === "640") || largest).url;
  image.alt = photo.filename;
  image.classList.toggle("small", photo.width < 240);
  if (photo.width < 240) {
    image.removeAttribute("srcset"); // shown in its own size, not scaled up
    image.removeAttribute("sizes");
  }
  image.hidden = false;
  link.href = largest.url;
}

function showPalette(card, photo) {
  const strip = card.querySelector(".palette");
  if (!photo.palette || strip.childElementCount) return;
  const words = photo.palette.map(({ colour, share }) => `${colour} ${Math.round(share * 100)} %`);
  strip.setAttribute("aria-label", `Palette: ${words.join(", ")}`);
  photo.palette.forEach(({ colour, share }, index) => {
    const swatch = element("i");
    swatch.style.background = colour;
    swatch.style.flexGrow = share;
    swatch.title = words[index];
    strip.append(swatch);
  });
}

function showPieces(card, photo) {
  const chips = photo.pieces.map((piece) => {
    const item = element("li");
    const chip = element(piece.url ? "a" : "span", piece.state, piece.name);
    chip.title = piece.url ? `${piece.width} × ${piece.height} px` : piece.state;
    chip.setAttribute("aria-label", `${piece.name}: ${piece.state}`);
    if (!piece.url) chip.setAttribute("role", "img");
    if (piece.url) {
      chip.href = piece.url;
      chip.target = "_blank";
      chip.rel = "noopener";
    }
    item.append(chip);
    return item;
  });
  card.querySelector(".pieces").replaceChildren(...chips);
}

function showTrouble(card, photo) {
  const trouble = card.querySelector(".trouble");
  const piece =
    photo.pieces.find(({ state }) => state === "failed") ||
    photo.pieces.find(({ state }) => state === "retrying");
  trouble.hidden = !piece;
  if (!piece) return;
  trouble.className = `trouble ${piece.state}`;
  const what = piece.name === "palette" ? "The palette" : `The thumbnail of ${piece.name} px`;
  const how = piece.state === "failed" ? "failed" : `failed at attempt ${piece.attempts} and will be tried again`;
  trouble.textContent = `${what} ${how}: ${piece.error}`;
}

function showRuns(card, photo) {
  const made = photo.pieces.filter((piece) => piece.state !== "queued");
  card.querySelector("details").hidden = !made.length;
  const rows = made.map((piece) => {
    const row = element("li");
    row.title = `${piece.function}\ntask ${piece.task}\nqueue ${piece.queue}\nrequest ${piece.request_id}`;
    row.append(
      element("span", "", piece.name),
      element("span", "", `on ${piece.service}`),
      element("span", "number", `${Math.round(piece.milliseconds)} ms`),
      element("span", "second quiet", `attempt ${piece.attempts} · ${piece.request_id}`),
    );
    return row;
  });
  card.querySelector(".runs").replaceChildren(...rows);
}

function showCard(card, photo) {
  const state = card.querySelector(".state");
  state.className = `state ${photo.state}`;
  state.textContent = STATE_WORDS[photo.state](photo);
  card.classList.toggle("waiting", pending(photo) && !photo.pieces.some((piece) => piece.url));
  showPicture(card, photo);
  showPalette(card, photo);
  showPieces(card, photo);
  showTrouble(card, photo);
  showRuns(card, photo);
}

/** Update the page to match what the server shows, newest first; return whether anything changed. */
function show(shown) {
  const { photos } = shown;
  showPages(shown);
  const listed = photos.filter(({ id }) => !deleted.has(id));
  const ids = new Set(listed.map(({ id }) => id));
  let changed = false;
  for (const [id, { element: card }] of cards) {
    if (ids.has(id)) continue;
    card.remove();
    cards.delete(id);
    changed = true;
  }
  listed.forEach((photo, position) => {
    let card = cards.get(photo.id);
    if (!card) {
      card = { element: newCard(photo), shown: "" };
      cards.set(photo.id, card);
    }
    const now = JSON.stringify(photo);
    if (card.shown !== now) {
      showCard(card.element, photo);
      card.shown = now;
      changed = true;
    }
    if (grid.children[position] !== card.element) grid.insertBefore(card.element, grid.children[position] || null);
  });
  empty.hidden = listed.length > 0 || shown.pages > 1;
  showTally(listed, shown);
  return changed;
}

let page = 1; // the page that is shown

/** Show the links to the other pages. The number may have changed: photographs came, or the last page was deleted. */
function showPages(shown) {
  page = shown.page;
  pages.hidden = shown.pages === 1;
  document.getElementById("page").textContent = `Page ${page} of ${shown.pages}`;
  for (const [id, other] of [["newer", page - 1], ["older", page + 1]]) {
    const link = document.getElementById(id);
    link.hidden = other < 1 || other > shown.pages;
    link.href = `?page=${other}`;
  }
}

function showTally(photos, shown) {
  const complete = photos.filter(({ state }) => state === "complete").length;
  const tasks = photos.reduce((sum, photo) => sum + photo.pieces.length, 0);
  const tasksDone = photos.reduce((sum, photo) => sum + done(photo), 0);
  const words = photos.length
    ? `${complete} of ${photos.length} complete · ${tasksDone} of ${tasks} tasks done` +
      (shown.pages > 1 ? ` on this page · ${shown.count} photographs in all` : "")
    : "";
  if (tally.textContent !== words) tally.textContent = words; // a live region: screen readers announce each change
  meter.parentElement.hidden = !photos.length;
  meter.style.width = tasks ? `${(100 * tasksDone) / tasks}%` : "0";
}

// --- Polling

let timer = 0;
let pauseMs = SOONEST_MS;
let asking = false;

async function refresh() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  const asked = page;
  let shown = null;
  try {
    const response = await fetch(`/api/photos?page=${asked}`, {
      headers: { Accept: "application/json" },
      signal: AbortSignal.timeout(LONGEST_ANSWER_MS),
    });
    if (response.ok) shown = await response.json();
    showGone(response.ok ? "" : `The server answered with an error (${response.status}).`);
  } catch {
    showGone("The server can't be reached.");
  }
  asking = false;
  if (asked !== page) {
    soon(); // an upload has led to the first page meanwhile
    return;
  }
  const changed = shown !== null && show(shown);
  const busy = shown !== null && shown.photos.some(pending);
  pauseMs = changed ? SOONEST_MS : Math.min(pauseMs * (busy ? 1.3 : 2), busy ? 2000 : SELDOMEST_MS);
  if (!document.hidden) timer = setTimeout(refresh, pauseMs);
}

/** Say what is wrong with the server, or nothing. The photographs stay as they were last known. */
function showGone(problem) {
  const words = problem && `${problem} What you see may be out of date. This page keeps trying.`;
  if (gone.textContent !== words) gone.textContent = words; // an alert: screen readers announce each change
}

function soon() {
  pauseMs = SOONEST_MS;
  clearTimeout(timer);
  timer = setTimeout(refresh, 0);
}

document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : soon()));

// --- Upload and deletion

function refuse(message) {
  const item = element("li");
  const close = element("button", "", "Dismiss");
  close.type = "button";
  close.addEventListener("click", () => item.remove());
  item.append(element("span", "", message), close);
  refused.append(item);
}

async function reason(response) {
  try {
    return (await response.json()).error || response.statusText;
  } catch {
    return `${response.status} ${response.statusText}`;
  }
}

async function send(file) {
  if (file.size > Number(form.dataset.maxBytes)) {
    refuse(`${file.name}: larger than ${Number(form.dataset.maxBytes) / 2 ** 20} MB.`);
    return;
  }
  const body = new FormData();
  body.append("photo", file);
  try {
    const response = await fetch(form.action, { method: "POST", body, headers: { Accept: "application/json" } });
    if (response.ok) showFirstPage();
    else refuse(await reason(response));
  } catch {
    refuse(`${file.name}: the server could not be reached; try again.`);
  }
  soon();
}

/** New photographs are on the first page. */
function showFirstPage() {
  if (page === 1) return;
  page = 1;
  window.history.replaceState(null, "", "/");
}

let waiting = [];
let total = 0;
let sent = 0;
let senders = 0;

/** Send files a few at a time, each in its own request, so that a bad file doesn't affect the others. */
function sendAll(list) {
  waiting.push(...list);
  total += list.length;
  while (senders < UPLOADS_AT_ONCE && waiting.length) sender();
}

async function sender() {
  senders += 1;
  while (waiting.length) {
    sending.textContent = `Uploading ${Math.min(sent + 1, total)} of ${total} …`;
    await send(waiting.shift());
    sent += 1;
  }
  senders -= 1;
  if (senders) return;
  sending.textContent = "";
  total = sent = 0;
}

async function deletePhoto(photo) {
  if (!window.confirm(`Delete ${photo.filename}?`)) return;
  const response = await fetch(photo.delete, { method: "POST", headers: { Accept: "application/json" } }).catch(() => null);
  if (!response || !response.ok) {
    refuse(`${photo.filename} could not be deleted; try again.`);
    return;
  }
  deleted.add(photo.id);
  soon();
}

files.addEventListener("change", () => {
  sendAll([...files.files]);
  files.value = "";
});
form.addEventListener("submit", (event) => event.preventDefault());

// The whole page accepts dropped files; otherwise the browser would open a file dropped beside the frame.
let depth = 0;
function dragged(event, change) {
  if (![...event.dataTransfer.types].includes("Files")) return;
  event.preventDefault();
  depth += change;
  document.body.classList.toggle("dropping", depth > 0);
}
document.addEventListener("dragenter", (event) => dragged(event, 1));
document.addEventListener("dragleave", (event) => dragged(event, -1));
document.addEventListener("dragover", (event) => dragged(event, 0));
document.addEventListener("drop", (event) => {
  dragged(event, -depth);
  sendAll([...event.dataTransfer.files]);
});

show(JSON.parse(document.getElementById("initial").textContent));
soon();
