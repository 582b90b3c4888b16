#!/usr/bin/env bash
# Follows the guides: runs the commands of docs/guides/*.md and of README.md, in order, each document in a
# folder of its own that holds nothing but the clone `crystalline`. Ends with an error that names the
# document, the line and the command that failed.
#
# What is run is what a reader sees:
#
# - in the guides, every block of ```sh, unless its first line begins with "# Not run:" and says why;
# - in README.md, which lists commands too, blocks of ```sh run (GitHub renders them as any other);
# - blocks with file=PATH behind their language are files: they are written where they stand.
#
# Usage: tests/guides.sh [DOCUMENT...]     (under a minute, and the first time the core is built)
#
# Needs Rust, curl and gunzip. CLLM names a built program instead of building one. What was printed is left
# in target/guides/*.log.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$root/target/guides
if [ -z "${CLLM:-}" ]; then
    cargo build --quiet --locked --release --package cllm
    CLLM=target/release/cllm
fi
[ $# -gt 0 ] || set -- README.md docs/guides/*.md

# Outside of the clone, whose workspace Cargo would find; the same folder each time, or what the guide to
# the core builds would be built again.
folder=${TMPDIR:-/tmp}/cllm-guides-$(cksum <<< "$root" | cut -d' ' -f1)
rm -rf "$folder"
mkdir -p "$work" "$folder/bin"
trap 'rm -rf "$folder"' EXIT
ln -s "$(realpath "$CLLM")" "$folder/bin/cllm"
# What the machine's owner has stored or set is not the newcomer's.
export PATH=$folder/bin:$PATH XDG_CONFIG_HOME=$folder/config CARGO_TARGET_DIR=$work/build
unset CLLM CLLM_ISA CLLM_TOKEN

# DOCUMENT: its blocks as a script, each line in its place: bash's numbers of lines are the document's.
script() {
    awk -v document="$1" '
        function refuse(why) { printf "%s:%d: %s\n", document, NR, why > "/dev/stderr"; bad = 1; exit 1 }
        BEGIN { is_guide = document ~ /guides\// }
        NR == 1 && /^```/ { refuse("a document begins with its title") }
        !fence && /^```./ {
            fence = NR
            kind = "text"
            if (/ file=[^ ]+$/) kind = "file"
            else if (is_guide && /^```sh ./) refuse("in a guide it is just ```sh")
            else if (is_guide ? /^```sh$/ : /^```sh run$/) kind = "run"
            path = $0
            sub(/.* file=/, "", path)
            print kind == "file" ? "cat > " path " <<'\''END OF THE FILE'\''" : ""
            next
        }
        fence && /^```$/ { print kind == "file" ? "END OF THE FILE" : ""; fence = 0; next }
        fence && NR == fence + 1 && kind == "run" && /^# Not run/ {
            if (!/^# Not run: ./) refuse("\"# Not run:\" is to say why")
            kind = "text"
        }
        { print fence && kind != "text" ? $0 : "" }
        END { if (!bad && fence) refuse("the block of line " fence " has no end") }
    ' "$1"
}

# Arguments: a script of blocks, its document.
follow='
    failed() {
        trap - ERR
        read -r command <<< "$3"
        printf "%s:%s: failed: %s\n" "$1" "$2" "$command" >&2
        exit 1
    }
    set -eEuo pipefail
    trap "failed \"$1\" \$LINENO \"\$BASH_COMMAND\"" ERR
    trap "kill \$(jobs -p) 2> /dev/null || true" EXIT
    . "$0"
'

fault=0
for document; do
    name=$(basename "$document" .md)
    begin=$SECONDS
    mkdir "$folder/$name"
    ln -s "$root" "$folder/$name/crystalline"
    script "$document" > "$work/$name.sh"
    if ! grep -q '[^[:space:]]' "$work/$name.sh"; then
        echo "guides.sh: $document has no command to run" >&2
        exit 1
    fi
    if (cd "$folder/$name" && timeout --kill-after 5 300 bash -c "$follow" "$work/$name.sh" "$document") \
        > "$work/$name.log" 2>&1 < /dev/null; then
        printf '%-28s followed in %d s\n' "$document" "$((SECONDS - begin))"
    else
        tail -n 20 "$work/$name.log" >&2
        echo "guides.sh: $document cannot be followed" >&2
        fault=1
    fi
done
exit "$fault"
