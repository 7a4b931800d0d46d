# SPDX-License-Identifier: GPL-2.0
# Makes KUnit cases of the examples in doc comments, as rustdoc would make tests of
# them: lines that begin with "# " are run and not shown. A case has the name of its
# file and of the item that the comment belongs to.
BEGIN {
	print "#[kunit_tests(pagekit_examples)]"
	print "mod tests {"
	print "    use super::*;"
}

FNR == 1 {
	file = FILENAME
	sub(/.*\//, "", file)
	sub(/\.rs$/, "", file)
}

/^ *\/\/[\/!]/ {
	line = $0
	sub(/^ *\/\/[\/!] ?/, "", line)
	if (line ~ /^```/)
		inside = !inside
	else if (inside) {
		sub(/^# |^#$/, "", line)
		body = body "        " line "\n"
	}
	next
}

body != "" && match($0, /(fn|struct) [A-Za-z_]+/) {
	name = substr($0, RSTART, RLENGTH)
	sub(/.* /, "", name)
	printf "\n    #[test]\n    fn %s_%s() -> Result {\n%s        Ok(())\n    }\n", file, tolower(name), body
	body = ""
}

END { print "}" }
