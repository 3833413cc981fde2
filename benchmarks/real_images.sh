#!/usr/bin/env bash
# Real images through pre-trained weights: CIFAR-10 with a ResNet-20, ImageNet with a MobileNetV2.
#
#   GRADSCORE_DATA=DATA benchmarks/real_images.sh RUNS benchmarks/results [cifar10] [imagenet]
#
# DATA holds cifar10/ and imagenet/, each with its weights and one folder a set with manifest.csv.
# RUNS takes the runs (resumed if they are there), the second argument the tables and figures; both
# are made unless one is named. On CIFAR-10 every method: those that learn take the labelled
# training images, and uniform noise as the stand-in for OOD. On ImageNet those that do not learn.
set -euo pipefail
: "${GRADSCORE_DATA:?set it to the folder of the images and weights}"
runs=$1 results=$2

tables() { # run, folder of its tables, options of evaluate
    mkdir -p "$2"
    gradscore run check "$1"
    gradscore score --run "$1" -o "$1/scores.csv"
    gradscore evaluate --run "$1" "${@:3}" -o "$2/evaluation.md"
    gradscore evaluate --run "$1" "${@:3}" -o "$2/evaluation.csv" --quiet >"$2/evaluation.txt"
    for kind in layers p temperature target decomposition kl; do
        gradscore ablate $kind --run "$1" -o "$2/$kind.csv" --plot "$2/$kind.png" >"$2/$kind.txt"
    done
}

cifar10() {
    local data=$GRADSCORE_DATA/cifar10 run=$runs/cifar10-resnet20
    mkdir -p "$runs"
    python -c "import numpy as np
noise = np.random.default_rng(0).integers(0, 256, (1000, 32, 32, 3), dtype=np.uint8)
np.savez('$runs/noise.npz', images=noise)"
    gradscore extract --model cifar:resnet20 --weights "$data/resnet20_cifar10.safetensors" \
        --id cifar10="$data/id_cifar10_test/manifest.csv" \
        --ood gtsrb="$data/ood_gtsrb/manifest.csv" \
        --ood textures="$data/ood_textures_dtd/manifest.csv" \
        --ood imagenet="$data/ood_imagenet_resize/manifest.csv" \
        --data train="$data/id_cifar10_train_subset/manifest.csv" \
        --data noise="$runs/noise.npz" \
        --record odin --epsilon 0.0014 --record mahalanobis --fit train --run "$run"
    gradscore extract --target all-ones -p 2 --run "$run"
    tables "$run" "$results/cifar10-resnet20" --fit train,noise --epsilon 0 --epsilon 0.0014
}

imagenet() {
    local data=$GRADSCORE_DATA/imagenet run=$runs/imagenet-mobilenetv2
    gradscore extract --model 'timm:mobilenetv2_100?pad_type=same' \
        --weights "$data/mobilenetv2_100_imagenet.safetensors" \
        --resize 256 --crop 224 --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --interpolation bilinear \
        --id imagenet="$data/id_imagenet_samples/manifest.csv" \
        --ood textures="$data/ood_textures_dtd/manifest.csv" \
        --ood sun="$data/ood_scenes_sun/manifest.csv" \
        --ood flowers="$data/ood_flowers/manifest.csv" \
        --batch-size 16 --run "$run"
    tables "$run" "$results/imagenet-mobilenetv2"
}

for images in "${@:3}"; do
    case $images in cifar10 | imagenet) ;; *) echo "Expected cifar10 or imagenet, got $images." >&2; exit 2 ;; esac
done
[ $# -gt 2 ] || set -- "$runs" "$results" cifar10 imagenet
for images in "${@:3}"; do "$images"; done
