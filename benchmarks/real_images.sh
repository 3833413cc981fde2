#!/usr/bin/env bash
# Real images through pre-trained weights: CIFAR-10 with a ResNet-20, ImageNet with a MobileNetV2.
#
#   GRADSCORE_DATA=DATA benchmarks/real_images.sh RUNS benchmarks/results
#
# DATA holds cifar10/ and imagenet/, each with its weights and one folder a set with manifest.csv.
# RUNS takes the runs (resumed if they are there), the last argument the tables and figures.
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

data=$GRADSCORE_DATA/cifar10
gradscore extract --model cifar:resnet20 --weights "$data/resnet20_cifar10.safetensors" \
    --id cifar10="$data/id_cifar10_test/manifest.csv" \
    --ood gtsrb="$data/ood_gtsrb/manifest.csv" \
    --ood textures="$data/ood_textures_dtd/manifest.csv" \
    --ood imagenet="$data/ood_imagenet_resize/manifest.csv" \
    --data train="$data/id_cifar10_train_subset/manifest.csv" \
    --run "$runs/cifar10-resnet20"
tables "$runs/cifar10-resnet20" "$results/cifar10-resnet20" --fit train

data=$GRADSCORE_DATA/imagenet
gradscore extract --model 'timm:mobilenetv2_100?pad_type=same' \
    --weights "$data/mobilenetv2_100_imagenet.safetensors" \
    --resize 256 --crop 224 --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --interpolation bilinear \
    --id imagenet="$data/id_imagenet_samples/manifest.csv" \
    --ood textures="$data/ood_textures_dtd/manifest.csv" \
    --ood sun="$data/ood_scenes_sun/manifest.csv" \
    --ood flowers="$data/ood_flowers/manifest.csv" \
    --batch-size 16 --run "$runs/imagenet-mobilenetv2"
tables "$runs/imagenet-mobilenetv2" "$results/imagenet-mobilenetv2"
