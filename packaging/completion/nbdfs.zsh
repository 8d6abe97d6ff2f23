#compdef nbdfs
# zsh completion for nbdfs: commands, their options, and the parts of a spec.

@TABLES@

# The names of stacks, as a spec has them.
_nbdfs_stacks() {
    sed -n 's/^ *\[ *stack\.\([A-Za-z0-9_-]*\).*/conf:\1/p' /etc/nbdfs.toml \
        ${XDG_CONFIG_HOME:-$HOME/.config}/nbdfs.toml 2>/dev/null
}

_nbdfs_mounts() {
    local target type rest
    local -a targets
    while read -r rest target type rest; do
        [[ $type != fuse.nbdfs ]] || targets+=("$(printf '%b' ${target//\\/\\0})")
    done </proc/self/mounts
    compadd -a targets || _files
}

# _nbdfs_kind KIND: file, spec, mount, or the words there are
_nbdfs_kind() {
    case $1 in
        file) _files ;;
        spec) _nbdfs_spec ;;
        mount) if [[ $PREFIX == *=* ]]; then _nbdfs_spec; else _nbdfs_mounts; fi ;;
        *) compadd -- ${=1} ;;
    esac
}

_nbdfs_spec() {
    setopt localoptions extendedglob
    local driver key
    if [[ $PREFIX == [^,:=/]##=[^,]# ]]; then # NAME=SPEC
        compset -P '[^=]#='
    fi
    compset -P '*::'
    driver=${PREFIX%%[,:]*}
    if [[ $PREFIX == [a-z0-9-]##,[^:]# ]]; then
        compset -P '*,'
        if [[ $PREFIX == *=* ]]; then
            key=${PREFIX%%=*}
            compset -P '*='
            _nbdfs_kind "${_nbdfs_values[$driver,$key]}"
        else
            compadd -S '' -- ${=_nbdfs_keys[$driver]}
        fi
    elif [[ $PREFIX == *:* && " $_nbdfs_files " == *" $driver "* ]]; then
        compset -P '[^:]#:'
        _files
    else
        compadd -S '' -- ${=_nbdfs_starts}
        compadd -- $(_nbdfs_stacks)
        _files
    fi
}

_nbdfs() {
    local context state state_descr line name
    local -A opt_args
    if ((CURRENT == 2)); then
        _describe command _nbdfs_commands
        return
    fi
    name=$words[2]
    shift words
    ((CURRENT--))
    if [[ -n ${_nbdfs_actions[$name]} ]]; then
        if ((CURRENT == 2)); then
            compadd -- ${=_nbdfs_actions[$name]}
            return
        fi
        name+=-$words[2]
        shift words
        ((CURRENT--))
    fi
    (($+functions[_nbdfs-$name])) && _nbdfs-$name
}

_nbdfs "$@"
