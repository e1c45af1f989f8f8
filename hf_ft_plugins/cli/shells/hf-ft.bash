# Completion of hf-ft for bash.
_hf_ft_completion() {
    local line=${COMP_LINE:0:COMP_POINT} typed breaks words kept= value
    COMPREPLY=()
    typed=${line##*[[:space:]]}
    # Of --with=VALUE, the value.
    [[ $typed == --*=* ]] && typed=${typed#--*=}
    # bash cuts words at ':' and '=', where COMP_WORDBREAKS says so, and replaces only what follows the last of them.
    breaks=${COMP_WORDBREAKS//[^:=]/}
    if [[ $typed == [\"\']* ]]; then
        typed=${typed:1}
    elif [[ -n $breaks ]]; then
        kept=${typed%"${typed##*[$breaks]}"}
    fi
    # Whole words, the last of which is to be completed.
    [[ -z $typed ]] && words="$line''" || words=$line
    while IFS= read -r value; do
        [[ -n $value && $value == "$typed"* ]] && COMPREPLY+=("${value#"$kept"}")
    done < <(env _HF_FT_COMPLETE=complete_bash COMP_WORDS="$words" COMP_CWORD=-1 "$1" 2>/dev/null)
    # A technique may go on with ':' or ',', and a folder with what is in it. Not there before bash 4.
    if [[ $line =~ (--with|-w)[[:space:]=]+[^[:space:]]*$ || ${COMPREPLY[0]} == */ ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o default -F _hf_ft_completion hf-ft
