# One claim: bash -Eeuo pipefail one.sh KEY. Its last line of output is its figure, or why it failed.
trap 'echo "failed: $BASH_COMMAND"' ERR
. /host/guest/lib.sh
. /host/guest/claims.sh
"$1"
