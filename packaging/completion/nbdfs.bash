# bash completion for nbdfs: commands, their options, and the parts of a spec.

@TABLES@

# _nbdfs_offer PREFIX WORDS CUR: the words that begin like CUR, each after PREFIX
_nbdfs_offer() {
    local word
    for word in $2; do
        [[ $word != "$3"* ]] || COMPREPLY+=("$1$word")
    done
}

_nbdfs_offer_files() {
    local file
    while IFS= read -r file; do
        [[ ! -d $file ]] || file+=/
        printf -v file '%q' "$file"
        COMPREPLY+=("$1$file")
    done < <(compgen -f -- "${3//\\/}")
}

# The names of stacks, as a spec has them.
_nbdfs_stacks() {
    sed -n 's/^ *\[ *stack\.\([A-Za-z0-9_-]*\).*/conf:\1/p' /etc/nbdfs.toml \
        "${XDG_CONFIG_HOME:-$HOME/.config}/nbdfs.toml" 2>/dev/null
}

_nbdfs_offer_mounts() {
    local target type
    while read -r _ target type _; do
        printf -v target '%b' "${target//\\/\\0}"
        [[ $type != fuse.nbdfs || $target != "${3//\\/}"* ]] || COMPREPLY+=("$1$(printf '%q' "$target")")
    done </proc/self/mounts
    ((${#COMPREPLY[@]})) || _nbdfs_offer_files "$@"
}

# _nbdfs_offer_kind PREFIX KIND CUR: KIND is file, spec, mount, or the words there are
_nbdfs_offer_kind() {
    case $2 in
        file) _nbdfs_offer_files "$@" ;;
        spec) _nbdfs_offer_spec "$1" "$3" ;;
        mount) if [[ $3 == *=* ]]; then _nbdfs_offer_spec "$1" "$3"; else _nbdfs_offer_mounts "$@"; fi ;;
        *) _nbdfs_offer "$@" ;;
    esac
}

_nbdfs_offer_spec() {
    local prefix=$1 cur=$2 driver key
    if [[ $cur =~ ^([^,:=/]+=)[^,]*$ ]]; then # NAME=SPEC
        prefix+=${BASH_REMATCH[1]} cur=${cur#*=}
    fi
    if [[ $cur == *::* ]]; then
        prefix+=${cur%"${cur##*::}"} cur=${cur##*::}
    fi
    driver=${cur%%[,:]*}
    if [[ $cur =~ ^[a-z0-9-]+, && $cur != *:* ]]; then
        prefix+=${cur%"${cur##*,}"} cur=${cur##*,}
        if [[ $cur == *=* ]]; then
            key=${cur%%=*}
            _nbdfs_offer_kind "$prefix$key=" "${_nbdfs_values[$driver,$key]-}" "${cur#*=}"
        else
            _nbdfs_offer "$prefix" "${_nbdfs_keys[$driver]-}" "$cur"
        fi
    elif [[ $cur == *:* && " $_nbdfs_files " == *" $driver "* ]]; then
        _nbdfs_offer_files "$prefix${cur%%:*}:" file "${cur#*:}"
    else
        _nbdfs_offer "$prefix" "$_nbdfs_starts $(_nbdfs_stacks)" "$cur"
        _nbdfs_offer_files "$prefix" file "$cur"
    fi
}

_nbdfs() {
    local line=${COMP_LINE:0:COMP_POINT} cur words command last
    # Words as the shell has them; COMP_WORDS is split at : and = too.
    [[ $line =~ ([^[:space:]\\]|\\.)*$ ]]
    cur=${BASH_REMATCH[0]}
    read -ra words <<<"${line%"$cur"}"
    command=${words[1]-}
    if [[ ${words[2]-} && ${_nbdfs_actions[$command]-} ]]; then
        command+=" ${words[2]}"
    fi
    last="$command ${words[-1]}"
    COMPREPLY=()
    if ((${#words[@]} == 1)); then
        _nbdfs_offer "" "$_nbdfs_commands" "$cur"
    elif [[ $cur == --*=* ]]; then
        _nbdfs_offer_kind "${cur%%=*}=" "${_nbdfs_options_values[$command ${cur%%=*}]-}" "${cur#*=}"
    elif [[ ${_nbdfs_options_values[$last]+set} ]]; then
        _nbdfs_offer_kind "" "${_nbdfs_options_values[$last]}" "$cur"
    elif [[ $cur == -* ]]; then
        _nbdfs_offer "" "${_nbdfs_options[$command]-}" "$cur"
    elif [[ $command == "${words[1]}" && ${_nbdfs_actions[$command]-} ]]; then
        _nbdfs_offer "" "${_nbdfs_actions[$command]}" "$cur"
    else
        _nbdfs_offer_kind "" "${_nbdfs_arguments[$command]-}" "$cur"
    fi

    # More of the same word may follow these.
    [[ ${COMPREPLY[0]-} != *[:=,/] && $cur != *,* ]] || compopt -o nospace 2>/dev/null
    # readline replaces only what follows the last break of its own.
    if [[ $COMP_WORDBREAKS == *:* && $COMP_WORDBREAKS == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${cur%"${cur##*[:=]}"}"}")
    fi
}

complete -F _nbdfs nbdfs
