# shellcheck shell=sh
# Read by ./run and ./test, at the root of the project. Sees to it that the Debian packages and the
# virtual environment that they need are there, and says what it installs.
#
# In:   SIMPLEXD_DEPENDENCIES  newest (default): dependencies from PyPI, in .venv
#                              debian: dependencies from Debian's packages, in .venv-debian
# Out:  $python, the virtual environment's interpreter

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
fail() { say "$*"; exit 1; }

packages='python3 python3-venv ca-certificates'
case ${SIMPLEXD_DEPENDENCIES:=newest} in
    newest)
        venv=.venv venv_options=
        # Newest at the time of the installation, whatever a new environment brings along.
        pip_options='--upgrade --upgrade-strategy eager' ;;
    debian)
        venv=.venv-debian venv_options=--system-site-packages
        export PYTHONNOUSERSITE=1  # the user's own packages are not Debian's
        # Nothing that is there may get another version: Debian's packages stay Debian's.
        pip_options="--constraint $venv/constraints"
        packages="$packages python3-twisted python3-openssl python3-service-identity"
        packages="$packages python3-cryptography python3-nacl python3-qrcode python3-txtorcon"
        # pip looks for it by the name in cryptography's metadata, and would bring its own.
        packages="$packages python3-cffi"
        packages="$packages python3-psycopg" ;;
    *)
        say "SIMPLEXD_DEPENDENCIES is '$SIMPLEXD_DEPENDENCIES'; it can be 'newest' or 'debian'"
        exit 2 ;;
esac
export SIMPLEXD_DEPENDENCIES
python=$venv/bin/python

# Install those of the Debian packages $packages that are missing.
install_packages() {
    command -v dpkg-query >/dev/null || return 0  # not a Debian: pip will say what it lacks
    missing=
    for package in $packages; do
        case $(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null) in
            ?i*) ;;
            *) missing="$missing $package" ;;
        esac
    done
    [ "$missing" ] || return 0
    sudo=
    [ "$(id -u)" -eq 0 ] || sudo=sudo
    say "installing Debian packages:$missing"
    [ -z "$sudo" ] || command -v sudo >/dev/null || fail "run as root: apt-get install$missing"
    $sudo apt-get -q update >&2
    # shellcheck disable=SC2086  # words are packages
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends \
        -o DPkg::Lock::Timeout=300 $missing >&2
}

# Make the virtual environment; again when pyproject.toml or the place of the project has changed.
make_environment() {
    made_for="$venv/made-for"
    if { pwd; cat pyproject.toml; } | cmp -s - "$made_for" && "$python" -c '' 2>/dev/null; then
        return 0
    fi
    system=/usr/bin/python3
    [ -x "$system" ] || system=python3
    say "making the virtual environment $venv with $system"
    rm -rf "$venv"
    # shellcheck disable=SC2086  # words are options
    "$system" -m venv $venv_options "$venv"
    "$python" -m pip list --format=freeze >"$venv/constraints"
    { pwd; cat pyproject.toml; } >"$made_for"
}

# Install the project, editable, with the extra $1 of pyproject.toml, or none.
install_project() {
    extra=${1:+"[$1]"}
    [ ! -e "$venv/installed$extra" ] || return 0
    say "installing the project and what it needs into $venv"
    # shellcheck disable=SC2086  # words are options
    "$python" -m pip install -q --disable-pip-version-check $pip_options -e ".$extra" >&2
    : >"$venv/installed$extra"
}
