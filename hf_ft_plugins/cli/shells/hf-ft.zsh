#compdef hf-ft
# Completion of hf-ft for zsh.
_hf_ft_completion() {
    local line="${(j: :)words[1,CURRENT-1]} $PREFIX" found value
    local -a values told options
    # Of --with=VALUE, the value.
    compset -P '--*='
    for found in ${(f)"$(env COLUMNS=1000 _HF_FT_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args \
        _TYPER_COMPLETE_ARGS="$line" ${words[1]} 2>/dev/null)"}; do
        value=${found%%$'\t'*}
        values+=("$value")
        [[ $found == *$'\t'* ]] && told+=("$value  -- ${found#*$'\t'}") || told+=("$value")
    done
    if (( ! $#values )); then
        _files
        return
    fi
    # A technique may go on with ':' or ',', and a folder with what is in it.
    [[ $line =~ '(--with|-w)[[:space:]=]+[^[:space:]]*$' || $values[1] == */ ]] && options=(-S '')
    compadd "${options[@]}" -l -d told -a values
}
if [[ $funcstack[1] == _hf-ft ]]; then
    _hf_ft_completion "$@"
else
    compdef _hf_ft_completion hf-ft
fi
