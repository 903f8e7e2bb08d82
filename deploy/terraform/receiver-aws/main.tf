# For the owner of a security group: egressd's published addresses as managed prefix lists, and what they may reach.
#
#   module "egressd" {
#     source            = "./receiver-aws"
#     url               = "https://ips.example.com/public-ips.json"
#     security_group_id = aws_security_group.webhooks.id
#   }
#
# Apply it daily: an address is announced a week before it carries traffic. Other groups, and route tables, can name the
# lists too: their identities are outputs.

terraform {
  required_version = ">= 1.5"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
    http = {
      source  = "hashicorp/http"
      version = ">= 3.3"
    }
  }
}

variable "url" {
  description = "Where /public-ips.json of the egressd is."
  type        = string

  validation {
    condition     = startswith(var.url, "https://")
    error_message = "Over plain HTTP anybody on the way could add to the list."
  }
}

variable "security_group_id" {
  description = "The group that the addresses are admitted to."
  type        = string
}

variable "port" {
  description = "The port that they may reach."
  type        = number
  default     = 443
}

variable "room" {
  description = "Entries that each list has room for. They count against the rules of every group that names the list."
  type        = number
  default     = 20
}

data "http" "list" {
  url = var.url

  retry {
    attempts = 2
  }

  lifecycle {
    postcondition {
      condition     = self.status_code == 200
      error_message = "The list was answered with ${self.status_code}."
    }
  }
}

module "list" {
  source = "../receiver"
  list   = data.http.list.response_body
}

locals {
  families = {
    for family, networks in { IPv4 = module.list.ipv4, IPv6 = module.list.ipv6 } : family => networks if length(networks) > 0
  }
}

resource "aws_ec2_managed_prefix_list" "egressd" {
  for_each       = local.families
  name           = "egressd-${lower(each.key)}"
  address_family = each.key
  max_entries    = var.room

  dynamic "entry" {
    for_each = toset(each.value)
    content {
      cidr        = entry.value
      description = "egressd"
    }
  }
}

resource "aws_vpc_security_group_ingress_rule" "egressd" {
  for_each          = local.families
  security_group_id = var.security_group_id
  description       = "egressd, ${each.key}"
  prefix_list_id    = aws_ec2_managed_prefix_list.egressd[each.key].id
  ip_protocol       = "tcp"
  from_port         = var.port
  to_port           = var.port
}

output "prefix_list_ids" {
  description = "By family: IPv4, IPv6."
  value       = { for family, list in aws_ec2_managed_prefix_list.egressd : family => list.id }
}

output "sync_token" {
  description = "Grows with each change of the list."
  value       = module.list.sync_token
}
