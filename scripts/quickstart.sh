#!/usr/bin/env bash
# The whole job on a laptop CPU: clips -> dataset -> post-training of a small base model -> generated clips, and how good they are.
#   ./scripts/quickstart.sh                 on the robot-arm clips that the repository ships
#   ./scripts/quickstart.sh VIDEO_FOLDER    on your own mp4 files (captions from .txt files of the same name, if any)
# ITERATIONS=450 sets the length of training, CLIPS=24 how many clips are measured. Everything is written under
# output/quickstart (OUTPUT sets another folder) and can be deleted.
set -euo pipefail
if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
    sed -n '2,6s/^# //p' "${BASH_SOURCE[0]}"
    exit 0
fi
case "${1:-}" in -*) echo "quickstart.sh: unknown option $1 (--help shows the usage)" >&2; exit 2 ;; esac
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source_folder="$(realpath "${1:-$here/assets/robot_arm}")"
cd "$here"

./scripts/setup_env.sh
export PATH="$PWD/.venv/bin:$PATH" TOKENIZERS_PARALLELISM=false
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" # threads that spin while they wait stall on a busy machine
out="${OUTPUT:-output/quickstart}/$(basename "$source_folder")"
dataset="$out/dataset"
iterations="${ITERATIONS:-450}" clips="${CLIPS:-24}"
frames=17 steps=12
base=assets/tiny_base/checkpoints/tiny_base_ema.safetensors

echo "== 1. clips and captions -> $dataset"
python scripts/import_videos.py "$source_folder" --dataset_path "$dataset" --short_side 128 | sed '/^next:/,$d; 4,$d'
echo "... $(find "$dataset/videos" -type f | wc -l) clips in all; captions in $dataset/metas"
heldout="$dataset" compared="clips of the training set"
if [ -d "${source_folder}_heldout" ]; then
    heldout="$out/heldout" compared="held-out clips"
    python scripts/import_videos.py "${source_folder}_heldout" --dataset_path "$heldout" --short_side 128 | sed '/^next:/,$d; 4,$d'
    echo "... $(find "$heldout/videos" -type f | wc -l) held-out clips"
fi

echo "== 2. text embeddings (offline tiny encoder)"
for folder in "$dataset" "$heldout"; do
    python scripts/get_t5_embeddings.py --dataset_path "$folder" --text_encoder tiny --format safetensors
done

echo "== 3. post-training of $base, $iterations updates"
OUTPUT_ROOT="$out/checkpoints" python -m train -- experiment=tiny_video2world_posttraining \
    dataloader_train.dataset.dataset_dir="$dataset" trainer.max_iter="$iterations"
run="$out/checkpoints/cosmos_predict/tiny/tiny_video2world_posttraining"
python scripts/plot_loss.py "$run" --save_path "$out/loss.png"

echo "== 4. generation from a first frame"
found="$(python - "$heldout" "$frames" "$out/first_frame.png" <<'PY'
import sys
from pathlib import Path
from PIL import Image
from cosmos_predict.data.video_reader import probe, read_frames
from cosmos_predict.errors import DataError
# the first clip that is long enough to be compared with
for clip in sorted(Path(sys.argv[1], "videos").iterdir()):
    try:
        info = probe(clip)
    except DataError:  # the training has named it
        continue
    if info.frames >= int(sys.argv[2]):
        break
Image.fromarray(read_frames(clip, [0])[0]).save(sys.argv[3])
print(info.fps, clip)
PY
)"
fps="${found%% *}" clip="${found#* }"
prompt="$(cat "$heldout/metas/$(basename "${clip%.*}").txt")"
echo "prompt: $prompt"
python inference/video2world.py --dit_path "$run" --load_ema --input_path "$out/first_frame.png" --prompt "$prompt" \
    --guidance 0 --num_steps $steps --fps "$fps" --save_path "$out/generated.mp4"

echo "== 5. comparison with the real $compared"
python scripts/evaluate.py --dit_path "$run" --load_ema --compare_with base=$base --dataset_path "$heldout" \
    --num_clips "$clips" --num_steps $steps --save_path "$out/evaluation.json" --save_clips "$out/compared" | tee "$out/evaluation.txt"
python scripts/contact_sheet.py "start frame=$out/first_frame.png" "generated=$out/generated.mp4" \
    "real=$out/compared/real.mp4" "before training=$out/compared/base.mp4" "tokenizer=$out/compared/tokenizer.mp4" \
    --save_path "$out/contact_sheet.png"

cat <<END

clip           $out/generated.mp4
picture        $out/contact_sheet.png   (start frame, generated, real, the base before training, the real clip through the tokenizer)
loss           $out/loss.png
figures        $out/evaluation.txt, $out/evaluation.json
checkpoint     $run

To run the commands by hand: source .venv/bin/activate
END
