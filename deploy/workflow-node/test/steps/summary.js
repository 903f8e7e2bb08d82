// As the platform's own actions are: props with defaults, one from an app, an export, an answer, an early end.
const shop = {
  type: "app",
  app: "shop",
  propDefinitions: { channel: { type: "string", label: "Channel", default: "orders" } },
  methods: {
    line(order) {
      return `${this.$auth?.name ?? "shop"}: ${order.id}`;
    },
  },
};

export default defineComponent({
  key: "shop-announce",
  name: "Announce an order",
  version: "0.0.3",
  type: "action",
  props: {
    shop,
    url: { type: "string", default: "https://receiver.test/announce" },
    channel: { propDefinition: [shop, "channel"] },
    tags: { type: "string[]", default: ["new"], optional: true },
    note: { type: "string", optional: true },
  },
  async run({ steps, $ }) {
    const { body } = steps.trigger.event;
    if (!body.orders?.length) return $.flow.exit("no orders");
    this.tags.push(`${body.orders.length}`);
    for (const order of body.orders) {
      $.send.http({
        method: "POST",
        url: this.url,
        data: { channel: this.channel, line: this.shop.line(order), tags: this.tags, run: $.context.id, previous: steps.previous?.$return_value },
      });
    }
    await $.respond({ status: 202, headers: { "x-orders": body.orders.length }, body: { accepted: true } });
    $.export("$summary", `Announced ${body.orders.length} orders`);
    return body.orders.length;
  },
});
