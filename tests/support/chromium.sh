# For the scripts that look at pages: source it.
#
# want_chromium WORK: leaves in CHROMIUM a Chromium without a window: the one that CHROMIUM names
# already, or else one of Debian's or Ubuntu's packages, unpacked into WORK/chromium without being
# installed, with those libraries that the system lacks. Needs no root.
want_chromium() {
    local work missing root libraries
    local -a apt
    work=$(realpath -m "$1/chromium")
    if [ -n "${CHROMIUM:-}" ]; then
        return
    fi
    CHROMIUM=$work/run
    if [ -x "$CHROMIUM" ]; then
        return
    fi
    if ! command -v apt-get > /dev/null || ! command -v dpkg > /dev/null; then
        echo "no Chromium: CHROMIUM is to name one, for there is no apt-get here to get it with" >&2
        return 1
    fi
    root=$work/root
    rm -rf "$work"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$root"
    # With lists of its own, which need not be root's.
    apt=(apt-get -qq -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o Debug::NoLocking=1
        -o APT::Sandbox::User= -o APT::Install-Recommends=0)
    "${apt[@]}" update
    missing=$("${apt[@]}" -s install chromium-headless-shell | sed -n 's/^Inst \([^ ]*\) .*/\1/p')
    # shellcheck disable=SC2086 # several words
    (cd "$work/cache/archives" && "${apt[@]}" download $missing)
    for package in "$work"/cache/archives/*.deb; do
        dpkg -x "$package" "$root"
    done
    rm -rf "$work/lists" "$work/cache"
    libraries=$(find "$root/usr/lib" -name '*.so*' -not -path '*/lib/chromium/*' -printf '%h\n' | sort -u | paste -sd:)
    cat > "$CHROMIUM.tmp" <<RUN
#!/bin/sh
export LD_LIBRARY_PATH="$libraries\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
exec "$root/usr/lib/chromium/chromium-headless-shell" "\$@"
RUN
    chmod +x "$CHROMIUM.tmp"
    mv "$CHROMIUM.tmp" "$CHROMIUM"
}
