#!/usr/bin/env bash
# From a fresh clone to pictures: makes .venv, trains on handwritten digits, exports class sheets.
# Needs Python 3.11 or newer and the packages, nothing else. Run again, it reuses what is there.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ensure_environment
run=outputs/quickstart/run
if [ -d "$run/checkpoints" ]; then
  .venv/bin/cifargan train "resume=$run"
else
  .venv/bin/cifargan train experiment=quickstart "hydra.run.dir=$run"
fi
pictures="$run/generated"
.venv/bin/cifargan sample "$run" --out "$pictures" >/dev/null

cat <<TEXT

The pictures:      $pictures/overview.png and a sheet for each digit beside it
The training:      $run/samples/
TensorBoard logs:  $run   (look at them: .venv/bin/tensorboard --logdir outputs)
Next, CIFAR-10:    .venv/bin/cifargan train experiment=cdcgan_cbn
TEXT
