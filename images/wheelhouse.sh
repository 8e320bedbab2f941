#!/bin/sh
# Fetch what the application needs for Debian 13 (Python 3.13), so that the image can be built offline.
#
#   images/wheelhouse.sh amd64|arm64 DIR     PYTHON=python3.11 chooses the Python whose pip downloads
#
# Wheels are checked against the hashes in requirements/; the engine comes as source and is compiled later.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
arch=$1
dir=$2
python=${PYTHON:-$here/.venv/bin/python}

case $arch in
  amd64) machine=x86_64 ;;
  arm64) machine=aarch64 ;;
  *) echo "wheelhouse: expected amd64 or arm64, found $arch" >&2; exit 2 ;;
esac

# fetch MACHINE REQUIREMENTS...: wheels only, for CPython 3.13 and glibc 2.41 of Debian 13.
fetch() {
  platform=$1
  shift
  set -- "$@" --platform "linux_$platform"
  for glibc in 2_5 2_12 2_17 2_24 2_26 2_27 2_28 2_31 2_34 2_35 2_38 2_39; do
    set -- "$@" --platform "manylinux_${glibc}_$platform"
  done
  "$python" -m pip download --quiet --require-hashes --only-binary :all: --no-deps --dest "$dir" \
    --implementation cp --python-version 3.13 --abi cp313 --abi abi3 --abi none \
    --platform "manylinux1_$platform" --platform "manylinux2010_$platform" --platform "manylinux2014_$platform" "$@"
}

mkdir -p "$dir"
fetch "$machine" -r "$here/requirements/main.txt"
# What compiles the engine runs on this machine, whatever the image is for.
fetch "$(uname -m)" -r "$here/requirements/build.txt"
"$python" -m pip download --quiet --require-hashes --no-deps --no-binary llama-cpp-python --no-build-isolation \
  --dest "$dir" -r "$here/requirements/engine.txt"
