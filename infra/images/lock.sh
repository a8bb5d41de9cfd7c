#!/usr/bin/env bash
# Write requirements-*.txt: every package of an image with the hashes of its files, within constraints.txt. Run after it changed.
#
#   infra/images/lock.sh [UV]
set -euo pipefail
cd "$(dirname "$0")/../.."
uv=${1:-uv}
unset UV_FIND_LINKS PIP_FIND_LINKS  # a local build of a wheel has another hash
lock() {
    local image=$1
    shift
    "$uv" pip compile --quiet --generate-hashes --no-annotate --no-header --python-version 3.11 \
        --python-platform x86_64-manylinux_2_28 --constraint constraints.txt --no-emit-package nightmill \
        --default-index https://pypi.org/simple --output-file "infra/images/requirements-$image.txt" "$@"
}
lock base pyproject.toml infra/images/server.in
lock spark pyproject.toml infra/images/server.in --extra spark --extra train --extra dask --extra serve
lock train-gpu pyproject.toml infra/images/server.in --extra train --extra dask --extra serve
