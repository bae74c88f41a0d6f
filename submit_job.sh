#!/usr/bin/env bash
# Submits a training to SLURM and, depending on it, the comparison of its precisions. See --help and docs/cluster.md.
set -euo pipefail

usage() {
  cat <<'HELP'
Usage: ./submit_job.sh PRECISION ROUNDS [TIME_LIMIT_MIN] [OPTION...] [OVERRIDE...]

Submits two SLURM jobs: a training, and the comparison of its precisions, which starts when the training has succeeded.
Both work in one new run folder, so that any number of submissions can go on at once.

  PRECISION        fp32, fp16 or int8: of the training, conf/experiment/PRECISION.yaml
  ROUNDS           num_rounds
  TIME_LIMIT_MIN   time_limit_min: no further round starts after so many minutes
  OVERRIDE         any setting, as for python -m fl.train; paths in it are relative to where you are

  --partition NAME, --account NAME, --qos NAME, --job-name NAME, --gpus N     as sbatch has them
  --cpus N         cores (2), on each node; --cpus-per-task N is the same
  --nodes N        of the training: above 1 its clients run on a Ray that is started over the allocation (engine=ray)
  --mem SIZE       memory (4G)
  --time TIME      SLURM's own limit (training: TIME_LIMIT_MIN + 15 minutes, 24 hours without; comparison: 30 minutes)
  --env COMMANDS   shell commands that come first in the jobs, such as 'module load cuda'; can be repeated
  --python PATH    interpreter (the active environment's, else .venv/bin/python, else python3)
  --run-dir DIR    new run folder (outputs/DATE/TIME in the repository)
  --local          run both here, one after the other, without SLURM
  --dry-run        print both job scripts, submit nothing
  --help           this text

Options hold for both jobs. Variables that sbatch reads (SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT, SBATCH_GPUS,
SBATCH_MEM_PER_NODE, ...), and SBATCH_CPUS_PER_TASK, replace the defaults above; options win over them.

  ./submit_job.sh fp32 10
  ./submit_job.sh fp32 10 30 data.path=EuroSAT.zip --partition gpu --gpus 1
  ./submit_job.sh fp32 50 experiment=best seed=7 --cpus 8 threads_per_client=8
  ./submit_job.sh fp32 3 --local data=synthetic
Sweeps: python -m fl.train -m ... hydra/launcher=slurm
HELP
}

die() {
  printf 'error: %s\n' "${*//$'\n'/ }" >&2
  exit 2
}

root=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
[ -f "$root/fl/train.py" ] || die "$root: is not the repository; run ./submit_job.sh itself, it calls sbatch"
sweep="a sweep is started by python -m fl.train -m ... hydra/launcher=slurm"
words=() given=() nodes=1 setup='' python='''' run_dir='' dry_run='' run_local=''

while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit ;;
    --dry-run) dry_run=yes ;;
    --local) run_local=yes ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" && continue ;;
    --cpus-per-task) set -- --cpus "${@:2}" && continue ;;
    --partition | --account | --qos | --job-name | --gpus | --cpus | --mem | --time | --nodes | --env | --python | --run-dir)
      case ${2:-} in '' | --*) die "$1: needs a value after it" ;; esac
      if [[ $1 != --env && $2 == *[$'"\\\n']* ]]; then die "$1 $2: must have no quote, backslash or line break"; fi
      case $1 in
        --env) setup+=$2$'\n' ;;
        --python) python=$2 ;;
        --nodes) nodes=$2 ;;
        --run-dir) run_dir=$2 ;;
        --cpus) given+=("--cpus-per-task=$2") ;;
        *) given+=("$1=$2") ;;
      esac
      shift
      ;;
    -m | --multirun) die "$1: $sweep" ;;
    -[[:digit:].]*) words+=("$1") ;; # a number, for the message that names it
    -*) die "$1: there is no such option; see ./submit_job.sh --help" ;;
    *) words+=("$1") ;;
  esac
  shift
done

# The words: PRECISION ROUNDS [TIME_LIMIT_MIN] [OVERRIDE...]
[ ${#words[@]} -ge 2 ] || die "a precision and a number of rounds are needed, as in: ./submit_job.sh fp32 10"
precision=${words[0]} rounds=${words[1]} limit='' minutes=1440
case $precision in
  fp32 | fp16 | int8) ;;
  *) die "precision $precision: there is no such precision; valid: fp32, fp16, int8" ;;
esac
[[ $rounds =~ ^[[:digit:]]{1,9}$ && $rounds != 0* ]] || die "rounds $rounds: must be a whole number of at least 1"
overrides=("${words[@]:2}")
if [ ${#words[@]} -ge 3 ] && [[ ${words[2]} != *=* && ${words[2]} != '~'* ]]; then
  limit=${words[2]} overrides=("${words[@]:3}")
  [[ $limit =~ ^[[:digit:]]{1,6}(\.[[:digit:]]+)?$ && $limit != 0[[:digit:]]* && -n ${limit//[0.]/} ]] ||
    die "time limit $limit: must be a positive number of minutes, or an override of the form key=value"
  minutes=$((${limit%%.*} + 16)) # rounded up, and a margin for start, data and the last round
  if [[ $limit != *.* ]]; then minutes=$((minutes - 1)); fi
fi
[[ $nodes =~ ^[1-9][[:digit:]]{0,3}$ ]] || die "--nodes $nodes: must be a whole number of at least 1"
[ -z "$run_local" ] || [ "$nodes" = 1 ] || die "--nodes $nodes: --local has one node, this machine"
experiments='' settings=() resume_with=''
if [ "$nodes" -gt 1 ]; then settings=(engine=ray engine.address=auto); fi
for override in ${overrides[@]+"${overrides[@]}"}; do
  key=${override%%=*}
  key=${key##*[+~]}
  case $key in
    num_rounds) die "$override: the second argument gives the rounds ($rounds)" ;;
    time_limit_min) die "$override: the argument after the rounds gives the time limit" ;;
    hydra.run.dir) die "$override: --run-dir DIR gives the run folder" ;;
    hydra.sweep* | hydra.mode | hydra/sweeper | hydra/launcher | hydra.launcher*)
      die "$override: $sweep"
      ;;
    engine | engine.address)
      [ "$nodes" = 1 ] || [ "$override" = engine=ray ] ||
        die "$override: with --nodes $nodes clients run on the Ray that the job starts (engine=ray engine.address=auto)"
      settings+=("$override")
      ;;
    log) settings+=("$override") && resume_with+=" --log=$(printf %q "${override#*=}")" ;; # of a resumed run too
    quiet) settings+=("$override") && if [[ $override == *=[Tt]rue ]]; then resume_with+=" --quiet"; fi ;;
    experiment) # more named sets beside the precision's, which comes last
      key=${override#*=}
      key=${key#[}
      key=${key%]}
      if [ "${key:-null}" != null ]; then experiments+=$key,; fi
      ;;
    *)
      settings+=("$override")
      if [[ $key == *._target_ ]]; then resume_with+=" --trust=$(printf %q "$(tr -d "'\"" <<<"${override#*=}")")"; fi
      ;;
  esac
done
case ,$experiments in
  *,fp32,* | *,fp16,* | *,int8,*) die "experiment=${experiments%,}: the first argument gives the precision ($precision)" ;;
esac
experiment=$precision
if [ -n "$experiments" ]; then experiment="[$experiments$precision]"; fi
arguments=("experiment=$experiment" "num_rounds=$rounds" ${limit:+"time_limit_min=$limit"} ${settings[@]+"${settings[@]}"})

# A Python that has what quantfl needs; then Hydra's own check, so that a typo is told now and not by a failed job.
export PYTHONPATH=$root:$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1
candidates=("${VIRTUAL_ENV:-/none}/bin/python" "${CONDA_PREFIX:-/none}/bin/python" "$root/.venv/bin/python" python3)
if [ -n "$python" ]; then candidates=("$python"); fi
modules=(fl flwr hydra torch)
if [ "$nodes" -gt 1 ]; then modules+=(ray); fi
for python in "${candidates[@]}" ''; do
  [ -n "$python" ] || die "${candidates[*]: -1}: ${told:-does not run}; run make install, or give --python PATH"
  told=$("$python" -c 'import sys, importlib.util as util
missing = [name for name in sys.argv[1:] if not util.find_spec(name)]
old = sys.version_info < (3, 11) and "is older than Python 3.11"
sys.exit(old or missing and "has no module " + ", ".join(missing) or 0)' "${modules[@]}" 2>&1) && break
  told=${told##*: }
done
python=$(command -v "$python")
case $python in /*) ;; *) python=$PWD/$python ;; esac
"$python" -m fl.train "${arguments[@]}" --cfg job >/dev/null || exit 2
mode=$("$python" -m fl.train "${arguments[@]}" --cfg hydra --package hydra.mode 2>/dev/null) || true
[ "$mode" != RunMode.MULTIRUN ] || die "experiment=$experiment: this one is a sweep; $sweep"

if [ -z "$dry_run$run_local" ] && ! command -v sbatch >/dev/null; then
  die "sbatch: is not on this machine's PATH; --local runs the same here without SLURM"
fi

# The run folder: mkdir fails where somebody else was first.
suffixes=("" -{2..999})
if [ -n "$run_dir" ]; then suffixes=(""); fi
run_dir=${run_dir:-$root/outputs/$(date +%Y-%m-%d/%H-%M-%S)}
case $run_dir in /*) ;; *) run_dir=$PWD/$run_dir ;; esac
wanted=${run_dir%/}
case $wanted in *$'\n'* | *\\* | *\"* | *"\${"*) die "run folder $wanted: must have no line break, backslash, \" or \${" ;; esac
for suffix in "${suffixes[@]}"; do
  run_dir=$wanted$suffix
  if [ -n "$dry_run" ]; then
    [ -e "$run_dir" ] || break
  else
    told=$(mkdir -p -- "$(dirname -- "$run_dir")" 2>&1 && mkdir -- "$run_dir" 2>&1) && break
    [ -e "$run_dir" ] || die "${told#mkdir: }; --run-dir DIR gives another place"
  fi
  run_dir=''
done
[ -n "$run_dir" ] || die "run folder $wanted: exists; give --run-dir a new folder"

# The job scripts: complete, so that `sbatch RUN_DIR/train.sbatch` continues a training that was killed.
directive() { # OPTION VALUE: a line for sbatch, weaker than SBATCH_* variables; left out where the option was given
  local each
  for each in ${given[@]+"${given[@]}"}; do [[ $each != "$1="* ]] || return 0; done
  printf '#SBATCH %s=%s\n' "$1" "$2"
}

start_of_script() { # STEP MINUTES NODES
  local each
  echo '#!/usr/bin/env bash'
  directive --job-name "quantfl-$precision-$1"
  directive --output "\"${run_dir//%/%%}/$1-%j.log\""
  directive --nodes "$3"
  directive --cpus-per-task "${SBATCH_CPUS_PER_TASK:-2}"
  [ -n "${SBATCH_MEM_PER_CPU:-}${SBATCH_MEM_PER_GPU:-}" ] || directive --mem 4G
  directive --time "$2"
  for each in ${given[@]+"${given[@]}"}; do printf '#SBATCH %s="%s"\n' "${each%%=*}" "${each#*=}"; done
  printf '#SBATCH --open-mode=append\n#SBATCH --requeue\n'
  if [ "$1" = train ]; then echo '#SBATCH --signal=B:USR1@60'; fi
  printf 'set -eo pipefail\n%sset -u\n\n' "$setup"
  printf 'cd %q\nroot=%q\npython=%q\nexport RUN_DIR=%q\n' "$PWD" "$root" "$python" "$run_dir"
  for each in EUROSAT_ZIP QUANTFL_CACHE; do
    [ -z "${!each:-}" ] || printf 'export %s=%q\n' "$each" "${!each}"
  done
  cat <<'SCRIPT'
export PYTHONPATH=$root:$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
export FLWR_TELEMETRY_ENABLED="${FLWR_TELEMETRY_ENABLED:-0}"
scratch=$(mktemp -d /tmp/quantfl-XXXXXX) # short: Ray's socket paths may have about 100 characters
export TMPDIR=$scratch RAY_TMPDIR=$scratch
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$scratch"' EXIT
training=
trap '[ -z "$training" ] || wait "$training" || true; exit 143' TERM # the training got the same signal
echo "$(date '+%F %T') job ${SLURM_JOB_ID:-local} on $(hostname)"

SCRIPT
}

train_script() {
  start_of_script train "$minutes" "$nodes"
  if [ "$nodes" -gt 1 ]; then ray_script; fi
  echo 'arguments=('
  printf '  %q\n' "${arguments[@]}"
  cat <<'SCRIPT'
  "hydra.run.dir=\${oc.env:RUN_DIR}"
)
work=("$python" -m fl.train "${arguments[@]}")
if [ -f "$RUN_DIR/settings.json" ]; then # requeued, or submitted again
SCRIPT
  echo "  work=(\"\$python\" -m fl resume \"\$RUN_DIR\"$resume_with)"
  cat <<'SCRIPT'
fi
if [ -z "${SLURM_JOB_ID:-}" ]; then # --local: in front, where Ctrl-C reaches it
  "${work[@]}"
  exit
fi

rounds() { { cat "$RUN_DIR/rounds.jsonl" 2>/dev/null || true; } | wc -l; }
near_the_limit() { # SLURM tells the script alone: the round in progress is given up, and the job waits for its next turn
  trap '' USR1
  kill -USR1 "$training" 2>/dev/null || true
  if wait "$training"; then exit 0; fi
  if [ "$(rounds)" -gt "$before" ] || [ -f "$RUN_DIR/final_model.pt" ]; then
    echo "$(date '+%F %T') time is nearly over after round $(rounds): requeued, to go on from there"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
  fi
  echo "error: time was over before a round was finished; submit again with a longer --time" >&2
  exit 1
}
before=$(rounds)
trap near_the_limit USR1
"${work[@]}" &
training=$!
wait "$training"
SCRIPT
}

ray_script() { # Ray over the allocation: this node is its head, the others join by a step of the job
  cat <<'SCRIPT'
address=$(hostname -I | cut -d ' ' -f 1):$((20000 + SLURM_JOB_ID % 10000))
start=(-m ray.scripts.scripts start --block --num-cpus "$SLURM_CPUS_PER_TASK" --disable-usage-stats)
"$python" "${start[@]}" --head --node-ip-address "${address%:*}" --port "${address#*:}" --include-dashboard false \
  >>"$RUN_DIR/ray-$SLURM_JOB_ID.log" 2>&1 &
export RAY_ADDRESS=$address join="${start[*]}" python
others=$((SLURM_NNODES - 1))
# shellcheck disable=SC2016 # the other nodes' shells fill in what the job exports
srun --nodes="$others" --ntasks="$others" --ntasks-per-node=1 --exclude="$SLURMD_NODENAME" --overlap bash -c '
  export RAY_TMPDIR=$(mktemp -d /tmp/quantfl-XXXXXX)
  trap "rm -rf $RAY_TMPDIR" EXIT
  trap "exit 143" TERM
  "$python" $join --address "$RAY_ADDRESS" & wait' </dev/null >>"$RUN_DIR/ray-$SLURM_JOB_ID.log" 2>&1 &
for _ in {1..120}; do
  joined=$("$python" -c 'import ray; ray.init("auto", logging_level="ERROR"); print(len(ray.nodes()))' 2>/dev/null) || joined=0
  if [ "$joined" -eq "$SLURM_NNODES" ]; then break; fi
  sleep 1
done
[ "$joined" -eq "$SLURM_NNODES" ] || {
  echo "error: $joined of $SLURM_NNODES nodes joined Ray, see $RUN_DIR/ray-$SLURM_JOB_ID.log" >&2
  exit 1
}
echo "Ray over $SLURM_NNODES nodes: $SLURM_JOB_NODELIST"
SCRIPT
}

compare_script() {
  start_of_script compare 30 1
  cat <<'SCRIPT'
"$python" "$root/compare_quantizations.py" "$RUN_DIR/final_model.pt"
SCRIPT
}

if [ -n "$dry_run" ]; then
  printf '# %s/train.sbatch\n%s\n\n' "$run_dir" "$(train_script)"
  printf '# %s/compare.sbatch, submitted with --dependency=afterok:TRAINING\n%s\n' "$run_dir" "$(compare_script)"
  exit
fi
train_script >"$run_dir/train.sbatch"
compare_script >"$run_dir/compare.sbatch"
if [ -n "$run_local" ]; then
  echo "Run folder: $run_dir"
  for step in train compare; do
    bash "$run_dir/$step.sbatch" 2>&1 | tee -ia "$run_dir/$step-local.log"
  done
  exit
fi

submit() { # STEP OPTION...: prints the job's id
  sbatch --parsable ${given[@]+"${given[@]}"} --output="${run_dir//%/%%}/$1-%j.log" "${@:2}" "$run_dir/$1.sbatch"
}
if ! training=$(submit train); then
  rm -- "$run_dir/train.sbatch" "$run_dir/compare.sbatch"
  rmdir -- "$run_dir" && rmdir -- "$(dirname -- "$run_dir")" 2>/dev/null
  die "sbatch refused the training (its message is above); nothing was submitted"
fi
training=${training%%;*}
if ! comparison=$(submit compare "--dependency=afterok:$training" --kill-on-invalid-dep=yes); then
  scancel "$training"
  die "sbatch refused the comparison (its message is above); the training, job $training, was cancelled"
fi
comparison=${comparison%%;*}
cat <<REPORT
Run folder:  $run_dir
Training:    job $training, log $run_dir/train-$training.log
Comparison:  job $comparison, after it, log $run_dir/compare-$comparison.log
Result:      $run_dir/quantization_comparison.json

Watch:       squeue --jobs $training,$comparison
             tail -F $(printf %q "$run_dir/train-$training.log")
Cancel:      scancel $training $comparison
REPORT
