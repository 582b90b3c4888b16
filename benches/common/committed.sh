# For the scripts that compare counts with committed ones: source it.
#
# Counts are lines of a number, a tab and a name. They follow from the code and the compiler, whose version stands in the
# file that is committed: with another one they are printed and not judged.

# bless WHAT SCRIPT FILE < COUNTS: commits them.
bless() {
    { printf '# %s, by %s --bless with %s.\n' "$1" "$2" "$(rustc --version)"; cat; } > "$3"
    cat "$3"
}

# judge WHAT SCRIPT FILE MOST [PATTERN] < COUNTS: prints counts beside those of the file, and fails if one is more than
# MOST % above, or if there are others than the file's (only names that match PATTERN, if it is given).
judge() {
    local made judged=1
    made=$(sed -n 's/^# .* with \(.*\)\.$/\1/p' "$3")
    if [ "$made" != "$(rustc --version)" ]; then
        echo "the counts of $3 are of $made, this is $(rustc --version): nothing is judged" >&2
        judged=0
    fi
    awk -F '\t' -v judged="$judged" -v what="$1" -v script="$2" -v most="$4" -v pattern="${5:-.}" '
        /^#/ { next }
        NR == FNR { if ($2 ~ pattern) before[$2] = $1; next }
        !seen { printf "%-36s %12s %12s %9s\n", "case", what, "committed", "change"; seen = 1 }
        {
            if (!($2 in before)) { printf "%-36s %12d  is new\n", $2, $1; fault = 1; next }
            change = 100 * ($1 / before[$2] - 1)
            over = change > most
            printf "%-36s %12d %12d %+7.2f %%%s\n", $2, $1, before[$2], change, over ? "  more" : ""
            worse += over
            delete before[$2]
        }
        END {
            for (name in before) { printf "%-36s is gone\n", name; fault = 1 }
            if (worse) print worse " above the committed counts by more than " most " %"
            if (fault) print "cases differ from the committed ones"
            if (!worse && !fault) exit
            print "if that is meant: " script " --bless, and say why in the commit"
            exit judged
        }' "$3" -
}
