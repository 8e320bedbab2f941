#!/bin/sh
# Run a command inside the tools tree, as root, in mount namespaces of its own.
#
#   images/enter.sh TREE COMMAND...
#
# The checkout is /src there, SATCHEL_IMAGE_BUILD (default: build/image of the checkout) is /build.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
tree=$1
shift
build=${SATCHEL_IMAGE_BUILD:-$here/build/image}
mkdir -p "$build"
export here tree build
# shellcheck disable=SC2016  # expanded inside
exec unshare --mount --propagation private sh -euc '
  mount --bind "$tree" "$tree"
  mount -t proc proc "$tree/proc"
  mount --rbind /sys "$tree/sys"
  mount --rbind /dev "$tree/dev"
  mount -t tmpfs tmpfs "$tree/run"
  mount -t tmpfs tmpfs "$tree/tmp"
  mkdir -p "$tree/src" "$tree/build"
  mount --bind "$here" "$tree/src"
  mount --bind "$build" "$tree/build"
  if [ -e /etc/resolv.conf ]; then
    touch "$tree/etc/resolv.conf"
    mount --bind /etc/resolv.conf "$tree/etc/resolv.conf"
  fi
  mount --bind /etc/hosts "$tree/etc/hosts"
  exec chroot "$tree" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM="${TERM:-dumb}" \
    LC_ALL=C.UTF-8 \
    ${PIP_NO_INDEX:+PIP_NO_INDEX="$PIP_NO_INDEX"} ${PIP_FIND_LINKS:+PIP_FIND_LINKS="$PIP_FIND_LINKS"} \
    ${SATCHEL_CACHE:+SATCHEL_CACHE="$SATCHEL_CACHE"} ${SOURCE_DATE_EPOCH:+SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH"} "$@"
' sh "$@"
