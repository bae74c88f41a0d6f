#!/usr/bin/env bash
# Tests submission on a real SLURM, started on this machine where none answers: tests/cluster/run.sh [PYTHON] [pytest options]
# Where SLURM cannot run it says why and succeeds.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
python=${1:-$here/../../.venv/bin/python}
code=0 before=''
if "$here/slurm.sh" status >/dev/null; then before=yes; fi
"$here/slurm.sh" start || code=$?
if [ "$code" = 77 ]; then
  echo "skipped: the tests on SLURM (reason above)"
  exit 0
fi
[ "$code" = 0 ] || exit "$code"
if [ -z "$before" ]; then trap '"$here/slurm.sh" stop' EXIT; fi
eval "$("$here/slurm.sh" env)"
echo "testing submit_job.sh on $(sinfo --version), partitions: $(sinfo --noheader --format=%P | xargs)"
"$python" -m pytest -v --rootdir="$here/../.." "$here/test_slurm.py" "${@:2}"
