#!/bin/sh
# From a folder of pictures with boxes to a server of your own detector: check, train, build, serve.
#
#     sh examples/own_data/run.sh [DATA [WORK]]
#
# DATA is a folder in COCO's or Pascal VOC's format (docs/compress.md); one that is not there is made, of rendered blood
# smears. WORK takes everything that is made. Needs: pip install -c constraints.txt '.[server,compress]'.
set -eu
here=$(dirname "$0")
data=${1:-runs/own-data/pictures}
work=${2:-runs/own-data/work}

[ -e "$data" ] || python "$here/render.py" "$data"

# Everything that is wrong with the data, at once: missing or broken pictures, unknown labels, boxes outside.
damoserve-compress check --data "$data"

# A small network on small pictures, so that one core sees it learn within a minute. For use: --size 416, 120 epochs or
# more, and no threads=1, which is best for pictures as small as these only. A second run resumes where one has stopped.
damoserve-compress train --data "$data" --model mine --variant P --size 160 --epochs "${EPOCHS:-30}" \
  --set batch_size=8 --set eval_every=10 --set threads=1 --out "$work/train"

# The network as it is, and in 8 bits: both are validated, measured side by side, and written only if they hold.
damoserve-compress build "$work/train/model.safetensors" --data "$data" --work "$work/build" --repository "$work/models" \
  --recipe "$here/fp32.yaml" --recipe "$here/int8.yaml" --rounds 30

# Until Ctrl-C. In another terminal: python examples/detect.py runs/own-data/pictures/images/000000.jpg
exec damoserve serve --repository "$work/models"
