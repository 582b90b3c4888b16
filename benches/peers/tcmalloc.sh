# For the scripts that run PyTorch as fast as it can be: source it.
#
# want_tcmalloc PEERS: unpacks Debian's tcmalloc into PEERS/debian, where settings.py looks for it, without installing it,
# so that no root is needed. Where it cannot be had it says why, and settings.py that it does without.
want_tcmalloc() {
    local peers=$1
    if [ ! -d "$peers/debian/usr" ]; then
        mkdir -p "$peers/debian"
        if ! (cd "$peers/debian" && apt-get --quiet=2 download libtcmalloc-minimal4 \
                && dpkg-deb --extract libtcmalloc-minimal4_*.deb .) 2> "$peers/debian.log"; then
            echo "no tcmalloc: $(tail -n 1 "$peers/debian.log")" >&2
        fi
    fi
}
