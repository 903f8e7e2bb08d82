output "sources" {
  description = "For egressd.toml: [[egress.source]] of each pair."
  value = join("\n", [
    for number in range(var.sources) :
    "[[egress.source]]\npublic = \"${aws_eip.source[number].public_ip}\"\nbind = \"${aws_network_interface.egress.private_ip_list[number + 1]}\"\n"
  ])
}

output "published" {
  description = "What public-ips.txt must list, with announced= and active= dates."
  value       = aws_eip.source[*].public_ip
}

output "api" {
  description = "Where workflow nodes call."
  value       = "https://${aws_network_interface.egress.private_ip_list[0]}:8700"
}
