variable "name" {
  description = "The node's name; also what its records bear."
  type        = string
  default     = "egress-1"
}

variable "subnet_id" {
  description = "A public subnet: its default route is an Internet gateway, not a NAT gateway, which would hide the Elastic IPs."
  type        = string
}

variable "sources" {
  description = "How many source addresses. A network interface holds one private address more than this; its instance type bounds it."
  type        = number
  default     = 4

  validation {
    condition     = var.sources >= 1 && var.sources <= 49
    error_message = "From 1 to 49: the largest instance types hold 50 addresses on an interface, and one is the host's own."
  }
}

variable "instance_type" {
  description = "Its network interface must hold the sources: a c7g.xlarge holds 15 addresses."
  type        = string
  default     = "c7g.xlarge"
}

variable "image_id" {
  description = "An image with systemd 252 or newer, egressd and the files of deploy/ installed."
  type        = string
}

variable "workflow_nodes" {
  description = "The networks that may call the API."
  type        = list(string)
}

variable "proxy_clients" {
  description = "The networks that may use the forward proxy; none where `[proxy]` is not configured."
  type        = list(string)
  default     = []
}

variable "monitoring" {
  description = "The networks that may scrape /metrics."
  type        = list(string)
}

variable "delivery_ports" {
  description = "Where deliveries may go; the same as `[policy] ports`."
  type        = list(object({ from = number, to = number }))
  default = [
    { from = 80, to = 80 },
    { from = 443, to = 443 },
    { from = 1024, to = 65535 },
  ]
}

variable "store_gib" {
  description = "The disk of the store; more than `[store] max_bytes`."
  type        = number
  default     = 60
}
