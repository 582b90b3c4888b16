# For the scripts that want a program of Debian's or Ubuntu's packages: source it.
#
# unpack_package WORK PACKAGE...: unpacks the packages, and of those that they depend on what the system lacks, into
# WORK/root without installing them, and leaves in LIBRARIES the folders of their libraries. Of PACKAGE:ARCHITECTURE,
# a package of other machines, nothing that it depends on. Needs no root. An error where there is no apt-get.
unpack_package() {
    local work own missing one
    local -a apt wanted=() foreign=()
    work=$(realpath -m "$1")
    shift
    if ! command -v apt-get > /dev/null || ! command -v dpkg > /dev/null; then
        echo "there is no apt-get here to get $* with" >&2
        return 1
    fi
    rm -rf "$work"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/root"
    # With lists of its own, which need not be root's.
    apt=(apt-get -qq -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o Debug::NoLocking=1
        -o APT::Sandbox::User= -o APT::Install-Recommends=0)
    for one in "$@"; do
        case $one in
            *:*) foreign+=("$one") ;;
            *) wanted+=("$one") ;;
        esac
    done
    if [ ${#foreign[@]} -gt 0 ]; then
        # Of machines that the system itself need not know.
        own=$(dpkg --print-architecture)
        for one in "$own" "${foreign[@]##*:}"; do
            apt+=(-o "APT::Architectures::=$one")
        done
    fi
    # Whoever calls this asks whether it went well, which switches `set -e` off in here.
    "${apt[@]}" update || return 1
    # Those that are installed as well: then all of them are in one place.
    missing=$("${apt[@]}" -s install --reinstall "${wanted[@]}" | sed -n 's/^Inst \([^ ]*\) .*/\1/p')
    if [ -z "$missing" ]; then
        echo "apt-get knows no packages ${wanted[*]} that could be installed" >&2
        return 1
    fi
    # shellcheck disable=SC2086 # several words
    (cd "$work/cache/archives" && "${apt[@]}" download $missing "${foreign[@]}") || return 1
    for one in "$work"/cache/archives/*.deb; do
        dpkg -x "$one" "$work/root" || return 1
    done
    rm -rf "$work/lists" "$work/cache"
    LIBRARIES=$(find "$work/root" -path "*/lib/*" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
}

# start_unpacked SCRIPT PROGRAM [ARGUMENT...]: makes SCRIPT, which runs the program of an unpacked package with these
# arguments before its own. An error if there is no such program.
start_unpacked() {
    local script=$1
    shift
    if [ ! -x "$1" ]; then
        echo "the package has no $1" >&2
        return 1
    fi
    {
        echo '#!/bin/sh'
        echo "export LD_LIBRARY_PATH=\"$LIBRARIES\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}\""
        echo "exec$(printf ' "%s"' "$@") \"\$@\""
    } > "$script.tmp"
    chmod +x "$script.tmp"
    mv "$script.tmp" "$script"
}
