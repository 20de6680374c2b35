// Functions may lack a body, as those that are linked by name do, where a package has such a file.
