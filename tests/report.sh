#!/usr/bin/env bash
# Trains small runs, writes their pages with `cllm report`, and looks at them in Chromium without a window:
# wide and as on a phone, light and dark. Ends with an error if a page says or asks anything that it
# should not, if a figure is not drawn, if words overlap or leave their place, or if the cursor, the
# legend, smoothing, zoom, tables or the live view do not do what they should.
#
# Usage: tests/report.sh     (half a minute, once the browser is there)
#
# Pictures are left in target/report/*.png. Needs Rust, Python 3.9 or newer with venv and pip, which
# install tests/support/requirements-browser.txt into target/report, and apt-get, from whose packages the
# browser is unpacked into target/report as well; where these cannot be had it ends with status 77.
# PYTHON names a Python that has playwright, CHROMIUM a browser, CLLM a built program instead.
set -euo pipefail
cd "$(dirname "$0")/.."
work=target/report
. tests/support/python.sh
. tests/support/chromium.sh
wanted="want_python $work tests/support/requirements-browser.txt; want_chromium $work"
# First in a shell of its own, which ends at what goes wrong.
if ! bash -euc ". tests/support/python.sh; . tests/support/chromium.sh; $wanted"; then
    echo "report.sh: no pages were looked at, for want of a browser and what drives it" >&2
    exit 77
fi
eval "$wanted"
. tests/support/program.sh
exec "$PYTHON" tests/support/report.py "$CLLM" "$CHROMIUM" "$work"
