export default defineComponent({
  async run({ steps, $ }) {
    $.send.http({
      method: "PUT",
      url: "https://receiver.test/items?page=1",
      data: { event: steps.trigger.event, price: 12.50 },
      headers: { "Content-Type": "application/json", "X-Tries": 3, "X-Tags": ["a", "b"] },
      params: { page: 2, tag: ["x", "y z"], dry: false, none: null },
      auth: { username: "luke", password: "t65-xwing" },
    });
    return "done";
  },
});
