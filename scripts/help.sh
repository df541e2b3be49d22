# Read by other scripts with "source": where their first argument is -h or --help, prints the comment at their top and
# ends them, before anything is installed.
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^[^#]/s/^#[ ]\{0,1\}//p' "${BASH_SOURCE[1]}"
    exit 0
fi
