#!/usr/bin/env bash
# The whole job on a laptop CPU: clips -> dataset -> post-training -> a generated mp4 and a contact sheet.
#   ./scripts/quickstart.sh                 on the robot-arm clips that the repository ships
#   ./scripts/quickstart.sh VIDEO_FOLDER    on your own mp4 files (captions from .txt files of the same name, if any)
# ITERATIONS=400 sets the length of training. Everything is written under output/quickstart and can be deleted.
set -euo pipefail
if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
    sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}"
    exit 0
fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source_folder="$(realpath "${1:-$here/assets/robot_arm}")"
cd "$here"

./scripts/setup_env.sh
export PATH="$PWD/.venv/bin:$PATH" TOKENIZERS_PARALLELISM=false
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" # threads that spin while they wait stall on a busy machine
out="output/quickstart/$(basename "$source_folder")"
dataset="$out/dataset"
iterations="${ITERATIONS:-400}"
frames=17 height=96 width=128

echo "== 1. clips and captions -> $dataset"
python scripts/import_videos.py "$source_folder" --dataset_path "$dataset" --short_side 128

echo "== 2. text embeddings (offline tiny encoder)"
python scripts/get_t5_embeddings.py --dataset_path "$dataset" --text_encoder tiny --format safetensors

echo "== 3. training, $iterations updates"
OUTPUT_ROOT="$out/checkpoints" python -m train -- experiment=tiny_video2world \
    dataloader_train.dataset.dataset_dir="$dataset" dataloader_train.dataset.num_frames=$frames \
    "dataloader_train.dataset.video_size=[$height,$width]" trainer.max_iter="$iterations" "scheduler.cycle_lengths=[$iterations]"
run="$out/checkpoints/cosmos_predict/tiny/tiny_video2world"

echo "== 4. generation from a first frame"
clip="$(python - "$dataset" "$frames" <<'PY'
import sys
from pathlib import Path
from cosmos_predict.data.video_reader import probe
# the first clip that is long enough to be compared with
print(next(path for path in sorted(Path(sys.argv[1], "videos").iterdir()) if probe(path).frames >= int(sys.argv[2])))
PY
)"
python - "$clip" "$out/first_frame.png" <<'PY'
import sys
from PIL import Image
from cosmos_predict.data.video_reader import read_frames
Image.fromarray(read_frames(sys.argv[1], [0])[0]).save(sys.argv[2])
PY
python inference/video2world.py --dit_path "$run" --load_ema --input_path "$out/first_frame.png" \
    --prompt "$(cat "$dataset/metas/$(basename "${clip%.*}").txt")" --guidance 1 --num_steps 20 --save_path "$out/generated.mp4"
python scripts/contact_sheet.py generated="$out/generated.mp4" real="$clip" --save_path "$out/contact_sheet.png"

python - "$run/metrics.jsonl" <<'PY'
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
first, last = lines[0], lines[-1]
print(f"loss {first['loss']:.3f} (iteration {first['iteration']}) -> {last['loss']:.3f} (iteration {last['iteration']})")
PY
echo "clip: $out/generated.mp4    picture: $out/contact_sheet.png    checkpoint: $run"
