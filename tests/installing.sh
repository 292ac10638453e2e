# What the scripts that make virtual environments share. It is read by them, not run.

# Each installation writes into the folder of the sources, and the scripts run at the same time.
one_at_a_time() {
    mkdir -p .venvs
    if command -v flock >/dev/null; then flock .venvs/installing "$@"; else "$@"; fi
}
