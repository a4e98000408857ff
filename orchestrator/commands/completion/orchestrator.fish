# Completion of `orchestrator …` and `python -m orchestrator …` for fish.

function __orchestrator_asked
    set -l words (commandline -opc)
    test (count $words) -ge 3; and test "$words[2]" = -m; and test "$words[3]" = orchestrator
end

function __orchestrator_complete
    set -l words (commandline -opc)
    set -l program $words[1]
    if string match -q -- '*python*' $words[1]
        set -a program -m orchestrator
    end
    $program completion fish --line (string join ' ' -- $words (commandline -ct)) 2>/dev/null
end

complete -c orchestrator -a '(__orchestrator_complete)'
for python in python python3
    complete -c $python -n __orchestrator_asked -a '(__orchestrator_complete)'
end
