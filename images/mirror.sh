# Sourced: MIRROR and SECURITY_MIRROR, from the environment or from this machine's own apt configuration.
first_uri() { # KIND: "security" or anything else
  { sed -n 's/^URIs:[[:space:]]*\([^[:space:]]*\).*/\1/p' /etc/apt/sources.list.d/*.sources
    sed -n 's/^deb \(\[[^]]*\] \)\{0,1\}\([^[:space:]]*\) .*/\2/p' /etc/apt/sources.list /etc/apt/sources.list.d/*.list
  } 2> /dev/null | if [ "$1" = security ]; then grep -m1 -- '/debian-security/*$'; else grep -m1 -- '/debian/*$'; fi
}
MIRROR=${SATCHEL_MIRROR:-$(first_uri main || true)}
SECURITY_MIRROR=${SATCHEL_SECURITY_MIRROR:-$(first_uri security || true)}
SECURITY_MIRROR=${SECURITY_MIRROR:-${MIRROR%/debian}/debian-security}
if [ -z "$MIRROR" ]; then
  echo "no Debian mirror: set SATCHEL_MIRROR=http://HOST/debian (this machine's apt names none)" >&2
  exit 2
fi
