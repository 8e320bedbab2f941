#!/bin/sh
# Make the tools tree: a Debian 13 directory with everything that builds and boots images (mkosi, repart,
# ukify, erofs, QEMU with UEFI firmware). The host needs mmdebstrap only, so any Debian 12 or 13 will do.
#
#   images/tools.sh DIR [TARBALL]      an existing TARBALL is unpacked instead of downloading; a missing one is written
#
# The mirror is configuration: SATCHEL_MIRROR and SATCHEL_SECURITY_MIRROR, else those of this machine's apt.
set -eu
. "$(dirname "$0")/mirror.sh"
tree=$1
tarball=${2:-}

if [ -e "$tree/.complete" ]; then exit 0; fi
rm -rf "$tree"
if [ -n "$tarball" ] && [ -e "$tarball" ]; then
  mkdir -p "$tree"
  tar --numeric-owner --xattrs -C "$tree" -xf "$tarball"
  exit 0
fi

packages=mkosi,mmdebstrap,apt,ca-certificates,debian-archive-keyring,gpg
packages=$packages,systemd,systemd-repart,systemd-ukify,systemd-boot-tools,systemd-boot-efi,systemd-container,udev
packages=$packages,erofs-utils,cryptsetup-bin,dosfstools,mtools,e2fsprogs,fdisk,cpio,kmod,xz-utils,zstd
packages=$packages,python3,python3-venv,python3-pip,python3-pefile,python3-cryptography,util-linux-extra,bubblewrap,uidmap
packages=$packages,gcc,g++,make,cmake,ninja-build,dpkg-dev
packages=$packages,qemu-system-x86,qemu-system-arm,qemu-user,ovmf,qemu-efi-aarch64,ipxe-qemu,seabios
packages=$packages,skopeo,umoci,kubernetes-client,lintian,jq,openssl

# Never let the tree's package scripts see a service manager or ask questions.
mmdebstrap --variant=apt --mode=root --skip=check/empty \
  --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --include="$packages" \
  trixie "$tree" \
  "deb $MIRROR trixie main" "deb $MIRROR trixie-updates main" "deb $SECURITY_MIRROR trixie-security main"
touch "$tree/.complete"
if [ -n "$tarball" ]; then
  tar --numeric-owner --xattrs -C "$tree" -cf - . | zstd -q -T0 -3 -o "$tarball.part"
  mv "$tarball.part" "$tarball"
fi
