# Shared by the scripts of this directory; sourced, not run.
# shellcheck shell=bash

# Where things that cost minutes are kept between runs and checkouts.
cache_dir() {
    if [[ -n ${COWSLIP_CACHE:-} ]]; then
        printf '%s\n' "$COWSLIP_CACHE"
    else
        printf '%s\n' "${XDG_CACHE_HOME:-$HOME/.cache}/cowslip"
    fi
}

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

# Programs of e2fsprogs and kmod are outside the PATH of ordinary users on Debian; rustup's are
# outside that of a shell without its profile.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:$HOME/.cargo/bin
export PATH

# Runs a command as root: itself when root, else through sudo.
as_root() {
    if [[ $(id -u) == 0 ]]; then
        "$@"
    elif has sudo; then
        sudo -- "$@"
    else
        die "needs root for: $*
run that as root (or install sudo), then try again"
    fi
}
