# For the owner of a firewall: the addresses to admit, from egressd's /public-ips.json, read the way that Google's list
# (cloud.json) is read everywhere, because it has that shape. In your configuration, `data "http"` fetches it:
#
#   data "http" "egressd" {
#     url = "https://ips.example.com/public-ips.json"
#   }
#
#   module "egressd" {
#     source = "./receiver"
#     list   = data.http.egressd.response_body
#   }
#
#   resource "aws_vpc_security_group_ingress_rule" "webhooks" {
#     for_each  = toset(module.egressd.ipv4)
#     cidr_ipv4 = each.value
#     …
#   }
#
# Announced, active and retiring addresses alike: an announced one carries traffic a week later, a retiring one still
# does. Apply it daily, or when `sync_token` changes.

terraform {
  required_version = ">= 1.5"
}

variable "list" {
  description = "The text of /public-ips.json."
  type        = string

  validation {
    condition     = length(try(jsondecode(var.list).prefixes, [])) > 0
    error_message = "Not a list of prefixes, or an empty one: an allow-list made from it would admit nobody."
  }
}

locals {
  prefixes = jsondecode(var.list).prefixes
}

output "ipv4" {
  description = "IPv4 networks, in CIDR form."
  value       = [for prefix in local.prefixes : prefix.ipv4Prefix if can(cidrnetmask(prefix.ipv4Prefix))]
}

output "ipv6" {
  description = "IPv6 networks, in CIDR form."
  value       = [for prefix in local.prefixes : prefix.ipv6Prefix if can(cidrhost(prefix.ipv6Prefix, 0))]
}

output "sync_token" {
  description = "Grows with each change of the list."
  value       = jsondecode(var.list).syncToken
}
