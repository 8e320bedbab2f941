#!/bin/sh
# Run the acceptance test of a built image inside the tools tree: see images/README.md.
#
#   images/accept.sh amd64|arm64 [arguments of images/acceptance/run.py]
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
arch=${1:?expected amd64 or arm64}
shift
export SATCHEL_IMAGE_BUILD="${SATCHEL_IMAGE_BUILD:-$here/build/image}"
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$here/pyproject.toml")
if [ ! -e "$SATCHEL_IMAGE_BUILD/mkosi-$arch/mkosi.output/satchel_$version.raw" ]; then
  echo "accept: no image of version $version: make image ARCH=$arch" >&2
  exit 2
fi
exec "$here/images/enter.sh" "${SATCHEL_TOOLS:-$SATCHEL_IMAGE_BUILD/tools}" \
  python3 -P /src/images/acceptance/run.py "$arch" "$version" "$@"
