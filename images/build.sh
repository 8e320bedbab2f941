#!/bin/sh
# Build the disk image: see images/README.md.
#
#   images/build.sh amd64|arm64 [VERSION]
#
# Environment:
#   SATCHEL_IMAGE_BUILD   where everything is made (default: build/image of the checkout)
#   SATCHEL_TOOLS         the tools tree (default: tools in there)
#   SATCHEL_MIRROR        Debian mirror (default: that of this machine's apt)
#   SATCHEL_COMMISSIONING directory with satchel.root, satchel.trusted_keys or satchel.site for every machine
#                         that starts from this image (default: none; each is set up by hand)
#   SATCHEL_OFFLINE=1     take nothing from the network: all was fetched by an earlier build
#   PYTHON                a Python whose pip fetches the wheels (default: that of .venv)
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
arch=${1:?expected amd64 or arm64}
version=${2:-$(sed -n 's/^version = "\(.*\)"$/\1/p' "$here/pyproject.toml")}
export SATCHEL_IMAGE_BUILD="${SATCHEL_IMAGE_BUILD:-$here/build/image}"
tools=${SATCHEL_TOOLS:-$SATCHEL_IMAGE_BUILD/tools}
build=$SATCHEL_IMAGE_BUILD
case $arch in
  amd64) mkosi_arch=x86-64 ;;
  arm64) mkosi_arch=arm64 ;;
  *) echo "build: expected amd64 or arm64, found $arch" >&2; exit 2 ;;
esac
if [ "$(id -u)" != 0 ]; then
  echo "build: expected root: images are made in mount namespaces and with file owners" >&2
  exit 2
fi
. "$here/images/mirror.sh"
mkdir -p "$build"

"$here/images/tools.sh" "$tools" "$build/tools.tar.zst"

wheels=wheelhouse-$arch
if [ "${SATCHEL_OFFLINE:-}" != 1 ]; then
  "$here/images/wheelhouse.sh" "$arch" "$build/$wheels"
fi
PIP_NO_INDEX=1 PIP_FIND_LINKS=/build/$wheels SATCHEL_CACHE=/build/cache \
  "$here/images/enter.sh" "$tools" /src/images/application.sh "/build/application-$arch"

# A copy of the definition with what only this build knows: mirror and application.
tree=$build/mkosi-$arch
mkdir -p "$tree"
for name in "$tree"/*; do
  case ${name##*/} in mkosi.cache | mkosi.packages | mkosi.output) ;; *) rm -rf "$name" ;; esac
done
cp -R "$here/images/mkosi/." "$tree/"
mkdir -p "$tree/mkosi.cache" "$tree/mkosi.packages" "$tree/mkosi.output" "$tree/mkosi.sandbox/etc/apt/sources.list.d" \
  "$tree/mkosi.sandbox/etc/apt/apt.conf.d"
cat > "$tree/mkosi.sandbox/etc/apt/sources.list.d/mkosi.sources" << SOURCES
Types: deb
URIs: $MIRROR
Suites: trixie trixie-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: $SECURITY_MIRROR
Suites: trixie-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
echo 'Acquire::Languages "none";' > "$tree/mkosi.sandbox/etc/apt/apt.conf.d/99-languages"
if [ -n "${SATCHEL_COMMISSIONING:-}" ]; then
  install -d "$tree/mkosi.extra/usr/lib/satchel-image/commissioning"
  install -m 644 "$SATCHEL_COMMISSIONING"/satchel.* "$tree/mkosi.extra/usr/lib/satchel-image/commissioning/"
fi
rm -f "$tree/mkosi.output/satchel_$version"*
set -- --directory "/build/mkosi-$arch" --architecture "$mkosi_arch" --image-version "$version" \
  --extra-tree "/build/application-$arch"
if [ "${SATCHEL_OFFLINE:-}" = 1 ]; then
  set -- "$@" --cache-only=always
fi
"$here/images/enter.sh" "$tools" mkosi "$@" build
ls -l "$tree/mkosi.output"
