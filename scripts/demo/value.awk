# A number in a line of JSON by its name; 0 where there is none.
function value(name,    at) {
    at = index($0, "\"" name "\":")
    return at ? substr($0, at + length(name) + 3) + 0 : 0
}
