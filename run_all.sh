#!/usr/bin/env bash
# Everything in one command: environment, data, all notebooks, all figures and tables. See ./run_all.sh --help.
# A thin shell: it finds or makes the Python environment, and hands over to workflow/run.py (Snakemake, papermill).
set -euo pipefail
cd "$(dirname "$0")"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
unfinished=.venv/.installing

say() { printf '%s\n' "$*"; }
fail() { printf 'run_all.sh: %s\n' "$*" >&2; exit 1; }

# The first Python 3.11 to 3.13 there is, for the command line and for making .venv.
find_python() {
  for python in python3 python python3.13 python3.12 python3.11; do
    if "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      return
    fi
  done
  fail "needs Python 3.11, 3.12 or 3.13 on the PATH, and found none"
}

# Sets PYTHON: the active environment or .venv if it has the pinned packages, else .venv after an installation.
find_environment() {
  for PYTHON in "${VIRTUAL_ENV:-none}/bin/python" "${CONDA_PREFIX:-none}/bin/python" .venv/bin/python "$python"; do
    if "$PYTHON" workflow/environment.py 2>/dev/null; then return; fi
  done
  install
  PYTHON=.venv/bin/python
}

install() {
  if [ -e "$unfinished" ]; then
    say "An earlier installation did not finish; it starts again."
    rm -rf .venv
    hash -r
  fi
  mkdir -p .venv
  : > "$unfinished"  # stays until all is there, so that a half-made environment is never used
  [ -x .venv/bin/python ] || "$python" -m venv .venv ||
    fail "cannot make .venv (on Debian and Ubuntu: apt install python3-venv)"
  local total log=.venv/install.log
  total=$(grep -c == requirements.lock.txt)
  say "Installing $total pinned packages into .venv, once: some minutes, about 2 GB (more with CUDA)."
  .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
    -r requirements.lock.txt 2>&1 | tee "$log" | show_progress "$total" ||
    { tail -n 5 "$log" >&2; fail "the installation failed (all of it: $log); mend that and start again"; }
  .venv/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e . \
    >> "$log" 2>&1 || { tail -n 5 "$log" >&2; fail "qpatch itself did not install (all of it: $log)"; }
  rm "$unfinished"
}

# Reads pip's output; says how many packages have been found so far.
show_progress() {
  local total=$1 count=0 line
  while IFS= read -r line; do
    case "$line" in
      Collecting*) count=$((count + 1))
        if [ -t 1 ]; then printf '\r  %d of %d  %-40s' "$count" "$total" "${line#Collecting }"
        elif [ $((count % 25)) -eq 0 ]; then say "  $count of $total"; fi ;;
      "Installing collected"*) if [ -t 1 ]; then printf '\r'; fi; say "  all there, now installing" ;;
    esac
  done
}

# The tools that the benchmarks compare with, in a folder of their own; without them their rows say "peer not installed".
peers() {
  local folder=build/peers log=build/peers.log
  if cmp -s benchmarks/requirements.txt "$folder/installed.txt"; then return; fi
  say "Installing $(grep -c == benchmarks/requirements.txt) packages to compare with into $folder, once."
  rm -rf "$folder"
  mkdir -p build
  if "$PYTHON" -m pip install --disable-pip-version-check --no-input --quiet --no-deps --target "$folder" \
    -r benchmarks/requirements.txt > "$log" 2>&1; then cp benchmarks/requirements.txt "$folder/installed.txt"
  else say "That failed (see $log); the comparisons with them are left out."; fi
}

# The benchmarks named, or all but the long one; then one table and one picture of all that have ever run. The exit
# status is 1 if one of them fails or a bound is missed.
bench() {
  local status=0 name
  if [ $# -eq 0 ]; then
    for name in benchmarks/[!_]*.py; do
      name=$(basename "$name" .py)
      if [ "$name" != laptop_run ]; then set -- "$@" "$name"; fi
    done
  fi
  for name in "$@"; do [ -e "benchmarks/$name.py" ] || fail "unknown benchmark '$name', see benchmarks/"; done
  peers
  for name in "$@"; do
    say "== $name"
    "$PYTHON" -m "benchmarks.$name" || status=1
  done
  say "== all"
  "$PYTHON" -m benchmarks._summary || status=1
  return $status
}

find_python
case "${1:-}" in
  test) shift; find_environment; exec "$PYTHON" -m pytest -n 2 --dist loadfile "$@" ;;
  bench) shift; find_environment; bench "$@" ;;
  *)
    "$python" -m workflow.cli "$@"  # a wrong command line ends here, before anything is installed
    for argument in "$@"; do case "$argument" in -h|--help) exit 0 ;; esac; done
    find_environment
    exec "$PYTHON" -m workflow.run "$@" ;;
esac
