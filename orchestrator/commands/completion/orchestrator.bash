# Completion of `orchestrator …` and `python -m orchestrator …` for bash.

_orchestrator_complete() {
    local line=${COMP_LINE:0:COMP_POINT}
    local -a program=("${COMP_WORDS[0]/#\~/$HOME}")
    if [[ ${program[0]##*/} == python* ]]; then
        if ! [[ $line =~ ^[[:space:]]*[^[:space:]]+[[:space:]]+-m[[:space:]]+orchestrator[[:space:]] ]]; then
            # Another use of python: whoever completed it before still does.
            [[ -z $_orchestrator_before ]] || "$_orchestrator_before" "$@"
            return
        fi
        program+=(-m orchestrator)
    fi
    COMPREPLY=()
    local word
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <("${program[@]}" completion bash --line "$line" 2>/dev/null)
    # bash has split the word at = and : and wants only what follows the last of them.
    local current=${line##*[[:space:]]} breaks=""
    [[ $COMP_WORDBREAKS == *=* ]] && breaks+="="
    [[ $COMP_WORDBREAKS == *:* ]] && breaks+=":"
    if [[ -n $breaks ]]; then
        local prefix=${current%"${current##*[$breaks]}"}
        COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    fi
    # More is to come after a key: no space behind it.
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=./] ]]; then
        compopt -o nospace
    fi
}

if [[ $(complete -p python 2>/dev/null) =~ -F\ ([^ ]+) && ${BASH_REMATCH[1]} != _orchestrator_complete ]]; then
    _orchestrator_before=${BASH_REMATCH[1]}
fi
complete -o bashdefault -o default -F _orchestrator_complete orchestrator python python3
