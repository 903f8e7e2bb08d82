# One node of the tier on AWS: an interface with a private address for the host and one for each source, an Elastic IP
# for each, and a disk of its own for the store. On the host, `cloud-pairs aws` reads the pairs from the metadata
# service; the output `sources` says the same.

data "aws_subnet" "egress" {
  id = var.subnet_id
}

resource "aws_security_group" "egressd" {
  name        = "egressd-${var.name}"
  description = "egressd: calls in from workflow nodes, deliveries out"
  vpc_id      = data.aws_subnet.egress.vpc_id

  tags = { Name = "egressd-${var.name}" }
}

resource "aws_vpc_security_group_ingress_rule" "api" {
  for_each = toset(var.workflow_nodes)

  security_group_id = aws_security_group.egressd.id
  description       = "The API, for workflow nodes"
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 8700
  to_port           = 8700
}

resource "aws_vpc_security_group_ingress_rule" "proxy" {
  for_each = toset(var.proxy_clients)

  security_group_id = aws_security_group.egressd.id
  description       = "The forward proxy, for whatever runs steps"
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 8703
  to_port           = 8703
}

resource "aws_vpc_security_group_ingress_rule" "metrics" {
  for_each = toset(var.monitoring)

  security_group_id = aws_security_group.egressd.id
  description       = "Metrics, for Prometheus"
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 8701
  to_port           = 8701
}

# Deliveries go anywhere on the Internet, by TCP. Where they may not go is the policy's and the guard's to say.
resource "aws_vpc_security_group_egress_rule" "deliveries" {
  for_each = { for ports in var.delivery_ports : "${ports.from}-${ports.to}" => ports }

  security_group_id = aws_security_group.egressd.id
  description       = "Deliveries to ${each.key}"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = each.value.from
  to_port           = each.value.to
}

# The host's own address is the interface's first; the others are the sources. Their order is kept, so that taking one
# away does not move the others.
resource "aws_network_interface" "egress" {
  subnet_id               = var.subnet_id
  description             = "egressd ${var.name}"
  security_groups         = [aws_security_group.egressd.id]
  private_ip_list_enabled = true
  private_ip_list         = [for number in range(var.sources + 1) : cidrhost(data.aws_subnet.egress.cidr_block, 10 + number)]

  tags = { Name = "egressd-${var.name}" }
}

# A published address stays ours until its retirement is over: whoever gets it next has our name at every receiver.
resource "aws_eip" "source" {
  count = var.sources

  domain                    = "vpc"
  network_interface         = aws_network_interface.egress.id
  associate_with_private_ip = aws_network_interface.egress.private_ip_list[count.index + 1]

  tags = { Name = "egressd-${var.name}-${count.index + 1}", published = "keep" }

  lifecycle {
    prevent_destroy = true
  }
}

# The host's own: packages, time, the operator's ssh. No source, and not in public-ips.txt.
resource "aws_eip" "host" {
  domain                    = "vpc"
  network_interface         = aws_network_interface.egress.id
  associate_with_private_ip = aws_network_interface.egress.private_ip_list[0]

  tags = { Name = "egressd-${var.name}-host" }
}

resource "aws_instance" "egress" {
  ami           = var.image_id
  instance_type = var.instance_type
  ebs_optimized = true
  monitoring    = true

  network_interface {
    device_index         = 0
    network_interface_id = aws_network_interface.egress.id
  }

  # A session token for every question, and no hop further than this host: what a delivery could be tricked into asking
  # is never answered.
  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  root_block_device {
    encrypted   = true
    volume_type = "gp3"
  }

  tags = { Name = "egressd-${var.name}" }
}

# Every accept waits for a sync, hence its own disk; and it outlives the instance, with the queue on it.
resource "aws_ebs_volume" "store" {
  availability_zone = data.aws_subnet.egress.availability_zone
  size              = var.store_gib
  type              = "gp3"
  encrypted         = true

  tags = { Name = "egressd-${var.name}-store" }

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_volume_attachment" "store" {
  device_name = "/dev/sdf"
  instance_id = aws_instance.egress.id
  volume_id   = aws_ebs_volume.store.id
}
