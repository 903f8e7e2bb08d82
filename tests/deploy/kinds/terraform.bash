# The Terraform examples: formatted, parsed, judged by checkov; the receiver's module, which needs no provider, runs.
need_python python python-hcl2
need_alone checkov checkov
command -v terraform >/dev/null || { echo "terraform is missing: no Debian package brings it" >&2; exit 1; }
export CHECKPOINT_DISABLE=1 TF_IN_AUTOMATION=1

examples=$deploy/terraform
check "terraform fmt finds nothing to change" terraform fmt -check -recursive "$examples"
mkdir "$scratch/unformatted"
sed 's/^  name /  name      /' "$examples/aws/main.tf" >"$scratch/unformatted/main.tf"
refuses "what is not formatted is refused" "main.tf" terraform fmt -check "$scratch/unformatted"

parses() {
    local file
    for file in "$@"; do
        python -c 'import hcl2, sys; assert hcl2.load(open(sys.argv[1]))' "$file" || { echo "$file does not parse"; return 1; }
    done
}
check "every file parses" parses "$examples"/*/*.tf
sed 's/^resource "aws_eip" "source" {/resource "aws_eip" "source"/' "$examples/aws/main.tf" >"$scratch/broken.tf"
refuses "a file that does not parse is refused" "broken.tf does not parse" parses "$scratch/broken.tf"

# Left out, with reasons: CKV_AWS_189, a key of one's own for the disk (the operator's choice); CKV2_AWS_41, a role (the
# host calls nothing of AWS); CKV2_AWS_19, Elastic IPs on an instance (these are on its interface).
judged() {
    "$tools/venv-checkov/bin/checkov" --skip-download --quiet --compact --framework terraform \
        --skip-check CKV_AWS_189,CKV2_AWS_41,CKV2_AWS_19 -d "$1"
}
check "checkov has no objection to the AWS example" judged "$examples/aws"
mkdir "$scratch/open"
sed 's/http_tokens .*/http_tokens = "optional"/' "$examples/aws/main.tf" >"$scratch/open/main.tf"
refuses "a metadata service that answers without a token is objected to" "CKV_AWS_79" judged "$scratch/open"

# The pairs that the outputs promise: one address more than sources, and the first is nobody's source.
pairs_line_up() {
    grep -qF 'range(var.sources + 1)' "$examples/aws/main.tf"
    grep -qF 'private_ip_list[count.index + 1]' "$examples/aws/main.tf"
    grep -qF 'private_ip_list[number + 1]' "$examples/aws/outputs.tf"
    [ "$(grep -c 'prevent_destroy = true' "$examples/aws/main.tf")" -eq 2 ]
}
check "sources are every private address but the first; published ones and the store are never destroyed" pairs_line_up

# What the receiver's example makes of a list, by the module that it uses: a list and a rule for each family that there is.
families() { # families LIST, as JSON
    local there=$scratch/families-$RANDOM
    mkdir -p "$there/aws"
    cp -r "$examples/receiver" "$there/receiver"
    # Its own words, without what a provider has to be fetched for.
    printf 'variable "list" {\n  type = string\n}\n' >"$there/aws/main.tf"
    sed -n '/^module "list"/,/^}/p; /^locals {/,/^}/p' "$examples/receiver-aws/main.tf" |
        sed 's/data.http.list.response_body/var.list/' >>"$there/aws/main.tf"
    printf 'output "families" {\n  value = local.families\n}\n' >>"$there/aws/main.tf"
    cd "$there/aws"
    terraform init -no-color >/dev/null
    terraform apply -no-color -auto-approve -var "list=$1" >/dev/null
    terraform output -json families
}
made_of() { [ "$(families "$1" | jq -cS .)" = "$2" ] || { families "$1"; return 1; }; }
need jq jq
four='{"ipv4Prefix": "192.0.2.1/32"}' six='{"ipv6Prefix": "2001:db8::1/128"}'
check "of a list of both families, two" made_of "{\"syncToken\": \"1\", \"prefixes\": [$four, $six]}" '{"IPv4":["192.0.2.1/32"],"IPv6":["2001:db8::1/128"]}'
check "of one of IPv4, one" made_of "{\"syncToken\": \"1\", \"prefixes\": [$four]}" '{"IPv4":["192.0.2.1/32"]}'
refuses "and of an empty one, nothing at all" "admit nobody" families '{"syncToken": "1", "prefixes": []}'
each_has_a_rule() {
    [ "$(grep -c 'for_each *= local.families' "$examples/receiver-aws/main.tf")" -eq 2 ]
    grep -qF 'prefix_list_id    = aws_ec2_managed_prefix_list.egressd[each.key].id' "$examples/receiver-aws/main.tf"
}
check "each with its prefix list and its rule" each_has_a_rule
