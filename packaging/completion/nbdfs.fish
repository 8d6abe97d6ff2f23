# fish completion for nbdfs: commands, their options, and the parts of a spec.

# __nbdfs_at WORD...: whether the words after nbdfs begin with these
function __nbdfs_at
    set -l words (commandline -opc)[2..]
    set -q argv[1]; or return 0
    set -q words[(count $argv)]; and test "$words[1..$(count $argv)]" = "$argv"
end

function __nbdfs_at_end
    test (count (commandline -opc)) -eq (math 1 + (count $argv)); and __nbdfs_at $argv
end

function __nbdfs_offer_files
    for file in $argv[2]*
        test -d $file; and set file $file/
        echo $argv[1]$file
    end
end

# __nbdfs_offer_kind PREFIX KIND CUR: KIND is file, spec, or the words there are
function __nbdfs_offer_kind
    switch $argv[2]
        case file
            __nbdfs_offer_files $argv[1] $argv[3]
        case spec
            __nbdfs_offer_spec $argv[1] $argv[3]
        case '*'
            for word in (string split -n ' ' -- $argv[2])
                echo $argv[1]$word
            end
    end
end

# The names of stacks, as a spec has them.
function __nbdfs_stacks
    set -l folder $XDG_CONFIG_HOME $HOME/.config
    sed -n 's/^ *\[ *stack\.\([A-Za-z0-9_-]*\).*/conf:\1/p' /etc/nbdfs.toml $folder[1]/nbdfs.toml 2>/dev/null
end

function __nbdfs_mounts
    while read -d ' ' -l device target type rest
        test $type = fuse.nbdfs; and printf '%b\n' (string replace -a '\\' '\\0' -- $target)
    end </proc/self/mounts
end

function __nbdfs_mount
    set -l cur (commandline -ct)
    if string match -q '*=*' -- $cur
        __nbdfs_spec
    else if not string match -r -- '^'(string escape --style=regex -- $cur)'.*' (__nbdfs_mounts)
        __nbdfs_offer_files '' $cur
    end
end

function __nbdfs_offer_spec
    set -l prefix $argv[1]
    set -l cur $argv[2]
    if string match -qr '^[^,:=/]+=[^,]*$' -- $cur # NAME=SPEC
        set prefix $prefix(string replace -r '=.*' = -- $cur)
        set cur (string replace -r '^[^=]*=' '' -- $cur)
    end
    if string match -q '*::*' -- $cur
        set prefix $prefix(string replace -r '(.*::).*' '$1' -- $cur)
        set cur (string replace -r '.*::' '' -- $cur)
    end
    set -l driver (string replace -r '[,:].*' '' -- $cur)
    if string match -qr '^[a-z0-9-]+,[^:]*$' -- $cur
        set prefix $prefix(string replace -r '(.*,).*' '$1' -- $cur)
        set cur (string replace -r '.*,' '' -- $cur)
        if string match -q '*=*' -- $cur
            set -l key (string replace -r '=.*' '' -- $cur)
            __nbdfs_offer_kind $prefix$key= "$(__nbdfs_values $driver,$key)" (string replace -r '^[^=]*=' '' -- $cur)
        else
            __nbdfs_keys $driver | string replace -r '^' (string escape --style=regex -- $prefix | string replace -a '\\' '')
        end
    else if string match -q '*:*' -- $cur; and contains -- $driver $__nbdfs_files
        __nbdfs_offer_files $prefix(string replace -r ':.*' : -- $cur) (string replace -r '^[^:]*:' '' -- $cur)
    else
        begin
            __nbdfs_starts
            __nbdfs_stacks
        end | string replace -r '^' (string escape --style=regex -- $prefix | string replace -a '\\' '')
        __nbdfs_offer_files $prefix $cur
    end
end

function __nbdfs_spec
    __nbdfs_offer_spec '' (commandline -ct)
end

complete -c nbdfs -f
@TABLES@
