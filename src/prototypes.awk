# SPDX-License-Identifier: GPL-2.0
# What a Rust source has for C, as prototypes and exports, and structures. The compiler of C
# holds them against those of pagekit.h: they must agree.

BEGIN {
	print "#include <pagekit.h>"
	c["bool"] = "bool"
	c["c_int"] = "int"
	c["c_uint"] = "unsigned int"
	c["c_ulong"] = "unsigned long"
	c["bindings::vm_fault_t"] = "vm_fault_t"
}

# What is not in the table is not known to C either.
function in_c(type,    stars) {
	while (sub(/^\*mut /, "", type))
		stars = stars "*"
	if (!(type in c) && (sub(/^bindings::/, "", type) || type ~ /^pagekit_/))
		return "struct " type " " stars
	return (type in c ? c[type] : type) (stars ? " " : "") stars
}

/^struct [a-z_]+ \{$/ { structure = $2; size = "0" }
/^    [a-z]+: .*,$/ && structure {
	split($0, field, / *: |,/)
	sub(/ +/, "", field[1])
	type = in_c(field[2])
	member = "struct " structure ", " field[1]
	print "static_assert(offsetof(" member ") == ALIGN(" size ", sizeof(" type ")));"
	print "static_assert(__same_type(typeof_member(" member "), " type "));"
	size = "offsetofend(" member ")"
}
/^}$/ { structure = "" }

/^(pub )?(unsafe )?extern "C" fn / { text = "" }
{ text = text " " $0 }
/^(.*\) .*)?\{$/ && text ~ /extern "C" fn/ {
	match(text, /fn [a-z_]+\(/)
	name = substr(text, RSTART + 3, RLENGTH - 4)
	rest = substr(text, RSTART + RLENGTH)
	result = match(rest, /\) -> .* \{/) ? substr(rest, RSTART + 5, RLENGTH - 7) : "void"
	sub(/\).*/, "", rest)
	n = split(rest, parameters, ",")
	list = ""
	for (i = 1; i <= n; i++)
		if (split(parameters[i], parameter, ": ") == 2)
			list = list (list ? ", " : "") in_c(parameter[2])
	print in_c(result) " " name "(" (list ? list : "void") ");"
	print "EXPORT_SYMBOL_GPL(" name ");"
	text = ""
}
