#!/bin/sh
# Mount one medium for satchel-media@.service and hand it to the user satchel, without any capability.
#
#   medium.sh DEVICE      such as sdb1; $RUNTIME_DIRECTORY is where it is mounted
#
# Read-only; no links, no programs, no devices count. The mount is in this service's own mount namespace,
# so nobody else sees it and it is gone with the service.
set -eu
device=$1
# On FAT, which knows no owners, who may read is what the umask of the mounting process leaves.
umask 022
mount -o ro,nosuid,nodev,noexec,nosymfollow "/dev/$device" "$RUNTIME_DIRECTORY"
umask 027
exec setpriv --reuid satchel --regid satchel --init-groups --inh-caps=-all --bounding-set=-all --no-new-privs \
  /usr/lib/satchel/bin/satchel media "$RUNTIME_DIRECTORY" --label "$device"
