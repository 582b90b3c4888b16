# For the scripts that look at pages: source it.
. "$(dirname "${BASH_SOURCE[0]}")/debian.sh"

# want_chromium WORK: leaves in CHROMIUM a Chromium without a window: the one that CHROMIUM names
# already, or else one of Debian's or Ubuntu's packages in WORK/chromium.
want_chromium() {
    local work
    work=$(realpath -m "$1/chromium")
    if [ -n "${CHROMIUM:-}" ]; then
        return
    fi
    CHROMIUM=$work/run
    if [ -x "$CHROMIUM" ]; then
        return
    fi
    if ! unpack_package "$work" chromium-headless-shell; then
        echo "no Chromium: CHROMIUM is to name one" >&2
        return 1
    fi
    # Its own libraries are beside it, and found there.
    LIBRARIES=$(tr : '\n' <<< "$LIBRARIES" | grep -v '/lib/chromium' | paste -sd:)
    start_unpacked "$CHROMIUM" "$work/root/usr/lib/chromium/chromium-headless-shell"
}
