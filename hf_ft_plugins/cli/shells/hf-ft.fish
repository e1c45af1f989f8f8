# Completion of hf-ft for fish.
function _hf_ft_completion
    set -l found (env COLUMNS=1000 _HF_FT_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args \
        _TYPER_COMPLETE_ARGS=(commandline -cp | string collect) hf-ft 2>/dev/null)
    if test -n "$found"
        # fish wants whole words, also of --with=VALUE.
        set -l before (string match -r '^--[^=]+=' -- (commandline -ct))
        string join \n -- "$before"$found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete --command hf-ft --no-files --arguments "(_hf_ft_completion)"
