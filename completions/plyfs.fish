complete -c plyfs -s o -d 'Mount options, separated by commas; may be repeated' -r -f
complete -c plyfs -s t -d 'What mount(8) hands to the program of a type (`-t`), and its `-n`, `-s`, `-v`: no meaning here' -r
complete -c plyfs -s f -d 'Stay in front'
complete -c plyfs -s d -l debug -d 'Log every request; stays in front too'
complete -c plyfs -s V -l version -d 'Show the version'
complete -c plyfs -s h -l help -d 'Show the help'
complete -c plyfs -l show -d 'Print the options of the union that is mounted there'
complete -c plyfs -s n
complete -c plyfs -s s
complete -c plyfs -s v
