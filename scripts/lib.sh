# shellcheck shell=bash
# What demo.sh and test.sh share: finding out what is missing, and installing just that on Debian and Ubuntu.

PATH="$HOME/.cargo/bin:$PATH:/usr/sbin:/sbin"
export PATH

say() { printf '\n== %s\n' "$*"; }
have() { command -v "$1" >/dev/null 2>&1; }

# quietly COMMAND...: its output only when it fails.
quietly() {
    local output
    output=$("$@" 2>&1) || { printf '%s\n' "$output" >&2; return 1; }
}

# as_root COMMAND...: as root, or with sudo, or not at all.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif have sudo; then sudo "$@"; else return 1; fi
}

missing=()

# need COMMAND PACKAGE: notes the package unless the command is there.
need() { have "$1" || missing+=("$2"); }

# Installs what need() noted; without root and sudo it only says what would help.
install_missing() {
    [ ${#missing[@]} -gt 0 ] || return 0
    if ! have apt-get || { [ "$(id -u)" != 0 ] && ! have sudo; }; then
        echo "not installed here: ${missing[*]} (as root: apt-get install ${missing[*]})" >&2
        return 0
    fi
    say "installing ${missing[*]}"
    if [ -z "${lists_updated:-}" ]; then
        quietly as_root apt-get update -qq || echo "apt-get update failed; going on with the lists that are there" >&2
        lists_updated=yes
    fi
    quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" ||
        echo "not everything could be installed: ${missing[*]}" >&2
    missing=()
}

# at_least WANTED FOUND: whether the version found is the wanted one or newer.
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

rust_wanted() { sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml; }
cargo_version() { cargo --version 2>/dev/null | cut -d ' ' -f 2; }
candidate() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: \([0-9][0-9.]*\).*/\1/p'; }

# need_rust [COMPONENT...]: a toolchain that is new enough: the one that is there, else the distribution's, else rustup's.
need_rust() {
    local wanted
    wanted=$(rust_wanted)
    if ! have cargo || ! at_least "$wanted" "$(cargo_version)"; then
        local offered
        offered=$(candidate rustc)
        if [ -n "$offered" ] && at_least "$wanted" "$offered"; then
            missing+=(cargo)
        elif ! have rustup && [ -n "$(candidate rustup)" ]; then
            missing+=(rustup)
        elif ! have rustup; then
            need curl curl
            [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
        fi
        install_missing
        if ! have cargo || ! at_least "$wanted" "$(cargo_version)"; then
            say "installing Rust with rustup, as $(id -un)"
            if have rustup; then
                quietly rustup toolchain install stable --profile minimal && quietly rustup default stable
            else
                curl -sSf --proto '=https' https://static.rust-lang.org/rustup/rustup-init.sh |
                    quietly sh -s -- -y --profile minimal --no-modify-path
            fi
        fi
    fi
    hash -r
    local component
    for component in "$@"; do
        cargo "${component#cargo-}" --version >/dev/null 2>&1 && continue
        case "$component" in
            cargo-fmt) if have rustup; then quietly rustup component add rustfmt; else missing+=(rustfmt); fi ;;
            cargo-clippy) if have rustup; then quietly rustup component add clippy; else missing+=(rust-clippy); fi ;;
        esac
    done
    install_missing
    have cargo || { echo "no cargo $wanted or newer; see https://rustup.rs" >&2; return 1; }
}
