# Completion of `orchestrator …` and `python -m orchestrator …` for zsh.

(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }

_orchestrator_complete() {
    local -a program found
    program=("${words[1]/#\~/$HOME}")
    if [[ ${words[1]:t} == python* ]]; then
        if [[ $words[2] != -m || $words[3] != orchestrator || $CURRENT -lt 4 ]]; then
            # Another use of python: zsh's own completion of it.
            if (( $+functions[_python] )); then _python "$@"; else _default "$@"; fi
            return
        fi
        program+=(-m orchestrator)
    fi
    local line="${(j: :)words[1,CURRENT-1]} $PREFIX"
    found=("${(@f)$("${program[@]}" completion zsh --line "$line" 2>/dev/null)}")
    found=(${found:#})
    if (( ! $#found )); then
        compset -P '*='
        _files
        return
    fi
    # More is to come after a key: no space behind it.
    compadd -Q -S '' -- ${(M)found:#*[=./]}
    compadd -Q -- ${found:#*[=./]}
}

compdef _orchestrator_complete orchestrator python python3
